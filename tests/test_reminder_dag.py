"""Messages as they leave: the morning's, and that of a failure; the addresses hold tokens that nobody may read."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import dag_aftermath
import pytest
from dag_aftermath import Kept
from environment import clean
from review_shop import ReviewShop

from wwts_ops import dag_defaults
from wwts_ops.errors import UnavailableError, WwtsError
from wwts_ops.settings import Settings

pytestmark = pytest.mark.slow

Make = Callable[..., Settings]
TOKEN = "geheim0token0abc"
#: A path that refuses what is sent there.
CLOSED = "closed"


@dataclass
class Inbox:
    """A chat group: what was sent to it."""

    port: int = 0
    messages: list[dict[str, Any]] = field(default_factory=list)

    def url(self, path: str = TOKEN) -> str:
        return f"json://127.0.0.1:{self.port}/{path}"


@pytest.fixture(scope="module")
def group() -> Iterator[Inbox]:
    inbox = Inbox()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if CLOSED not in self.path:
                inbox.messages.append({"path": self.path, **json.loads(body)})
            self.send_response(500 if CLOSED in self.path else 200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    inbox.port = server.server_port
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield inbox
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def inbox(group: Inbox) -> Inbox:
    """The group, nothing said in it yet."""
    group.messages.clear()
    return group


class TestTelling:
    def test_every_address_gets_it(self, make_settings: Make, inbox: Inbox) -> None:
        given = make_settings(notify=(inbox.url("a-group"), inbox.url("another")))
        dag_defaults.tell(given, "图片审核", "2,140 张待审\n去审核：https://x.example/plugin/wwts")
        assert [message["path"] for message in inbox.messages] == ["/a-group", "/another"]
        assert {message["title"] for message in inbox.messages} == {"图片审核"}
        assert inbox.messages[0]["message"] == "2,140 张待审\n去审核：https://x.example/plugin/wwts"

    def test_with_none_reached_it_is_tried_again(self, make_settings: Make, inbox: Inbox) -> None:
        given = make_settings(notify=(inbox.url(f"{CLOSED}-{TOKEN}"), f"json://127.0.0.1:1/{TOKEN}"))
        with pytest.raises(UnavailableError, match=r"第 1 个（json）、第 2 个（json）地址") as caught:
            dag_defaults.tell(given, "标题", "正文")
        assert TOKEN not in str(caught.value)

    def test_with_some_reached_nobody_is_told_twice(self, make_settings: Make, inbox: Inbox) -> None:
        given = make_settings(notify=(inbox.url("open"), f"nonsense://{TOKEN}/", TOKEN))
        with pytest.raises(WwtsError, match=r"第 2 个（nonsense）、第 3 个（不是地址）地址") as caught:
            dag_defaults.tell(given, "标题", "正文")
        assert not isinstance(caught.value, UnavailableError)
        assert TOKEN not in str(caught.value)
        assert len(inbox.messages) == 1

    @pytest.mark.parametrize("address", [f"dingtalk://{TOKEN}@phone", f"wecombot://{TOKEN}", f"feishu://{TOKEN}"])
    def test_the_services_of_the_shops_are_known(self, address: str) -> None:
        import apprise

        assert apprise.Apprise().add(address.removesuffix("@phone"))

    @pytest.mark.parametrize("kind", ["closed", "unreadable", "unreachable", "open"])
    def test_no_log_gets_a_token(self, make_settings: Make, inbox: Inbox, caplog: Any, capfd: Any, kind: str) -> None:
        """Apprise and the HTTP library write addresses into their logs as they are."""
        caplog.set_level(logging.DEBUG)
        url = {
            "closed": inbox.url(f"{CLOSED}/{TOKEN}%20x?key=query{TOKEN}"),
            "unreadable": f"nonsense://host.example/{TOKEN}%20x?key=query{TOKEN}",
            "unreachable": f"json://127.0.0.1:1/{TOKEN}",
            "open": inbox.url(f"{TOKEN}?key=query{TOKEN}"),
        }[kind]
        with nullcontext() if kind == "open" else pytest.raises(UnavailableError):
            dag_defaults.tell(make_settings(notify=(url,)), "标题", "正文")
        assert TOKEN not in caplog.text
        assert TOKEN not in "".join(capfd.readouterr())
        logging.getLogger("apprise").warning("heard again")
        assert "heard again" in caplog.text


def context(**more: Any) -> dict[str, Any]:
    """As Airflow gives it to a callback."""
    known = {"tag_shard": SimpleNamespace(task_display_name="打标")}
    dag = SimpleNamespace(dag_id="shop_tag_catalog", dag_display_name="每夜打标", task_dict=known)
    run = SimpleNamespace(
        run_id="scheduled__2026-11-22T18:00:00+00:00",
        partition_key="2026-11-23",
        run_after=datetime(2026, 11, 22, 18, tzinfo=UTC),
    )
    return {"dag": dag, "dag_run": run, "ti": SimpleNamespace(task_id="tag_shard"), "reason": "task_failure", **more}


class TestFailure:
    def test_which_what_of_when_and_what_to_do(self, make_settings: Make) -> None:
        given = make_settings(public_url="https://airflow.shop.example/", dag_prefix="shop_")
        assert dag_defaults.failure(given, "tag_catalog", context()).splitlines() == [
            "每夜打标（shop_tag_catalog） 2026-11-23 的运行失败。",
            "失败的任务：打标（tag_shard）。",
            "做完的部分已经发布。请看失败任务的日志，排除原因后清除失败的任务重跑；否则下一夜会先补做剩下的。",
            "查看：https://airflow.shop.example/dags/shop_tag_catalog/runs/scheduled__2026-11-22T18%3A00%3A00%2B00%3A00",
        ]

    def test_a_run_without_a_partition_has_its_moment_in_the_shop(self, make_settings: Make) -> None:
        one = context()
        one["dag_run"].partition_key = None
        assert "2026-11-23 02:00 的" in dag_defaults.failure(make_settings(), "publish_tags", one)

    def test_a_run_that_took_too_long_and_one_of_which_nothing_is_known(self, make_settings: Make) -> None:
        assert "超过了最长运行时间" in dag_defaults.failure(make_settings(), "tag_catalog", context(reason="timed_out"))
        bare = {"dag": context()["dag"], "run_id": "manual__1"}
        told = dag_defaults.failure(make_settings(public_url="https://x.example"), "unheard_of", bare)
        assert told.splitlines()[0] == "每夜打标（shop_tag_catalog）运行失败。"
        assert told.endswith("/runs/manual__1")

    def test_a_dag_that_keeps_failing_is_told_of_once_an_hour(self, make_settings: Make, inbox: Inbox) -> None:
        given = make_settings(notify=(inbox.url(),))
        tell = dag_defaults.dag_arguments(given, "publish_tags")["on_failure_callback"]
        other = dag_defaults.dag_arguments(given, "tag_catalog")["on_failure_callback"]
        for _ in range(3):
            tell(context())
        other(context())
        assert len(inbox.messages) == 2
        told = given.state_dir / "told" / "publish_tags"
        an_hour_ago = told.stat().st_mtime - 3601
        os.utime(told, (an_hour_ago, an_hour_ago))
        tell(context())
        assert len(inbox.messages) == 3

    def test_what_was_not_sent_is_not_noted_as_told(self, make_settings: Make, inbox: Inbox) -> None:
        given = make_settings(notify=(inbox.url(CLOSED),))
        tell = dag_defaults.dag_arguments(given, "publish_tags")["on_failure_callback"]
        for _ in range(2):
            with pytest.raises(UnavailableError):
                tell(context())

    def test_nobody_to_tell(self, make_settings: Make) -> None:
        assert dag_defaults.dag_arguments(make_settings(), "tag_catalog")["on_failure_callback"] is None
        tell = dag_defaults.dag_arguments(make_settings(notify=(f"json://h/{TOKEN}",)), "x")["on_failure_callback"]
        assert TOKEN not in repr(tell)


@dataclass(frozen=True)
class Ran:
    """What runs of the reminder left, and what the group read."""

    kept: Kept
    messages: Sequence[dict[str, Any]]
    shop: ReviewShop


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, group: Inbox) -> Ran:
    """The reminder, with everything logged that can be, the night before it unfinished; then with nobody to tell."""
    folder = tmp_path_factory.mktemp("reminder")
    group.messages.clear()
    with pytest.MonkeyPatch.context() as patch:
        clean(patch)
        notify = f"{group.url()},{group.url(f'{CLOSED}/{TOKEN}2')}"
        shop = ReviewShop.made(folder, items=40, notify=notify, public_url="https://airflow.shop.example")
        shop.store.delete(f"runs/{shop.plan.run_key}/done.json")
        steps: list[dag_aftermath.Step] = [("remind_reviewers", {}), ("remind_reviewers", {}, {"WWTS_NOTIFY": ""})]
        kept = dag_aftermath.run(shop.settings, steps, folder, AIRFLOW__LOGGING__LOGGING_LEVEL="DEBUG")
        return Ran(kept, list(group.messages), shop)


def test_the_message_arrives(ran: Ran) -> None:
    first = ran.messages[0]
    assert first["path"] == f"/{TOKEN}"
    lines = first["message"].splitlines()
    assert lines[0] == f"{ran.shop.waiting} 张待审。"
    assert lines[1] == (
        "注意：昨夜的打标到现在没有完成：图片都已打标，还差最后的收尾，"
        "已经停了，做完的部分已经发布；请管理员在 Airflow 里查看并重跑。"
    )
    assert lines[-1] == "去审核：https://airflow.shop.example/plugin/wwts"
    assert first["title"].endswith("（打标未完成）")


def test_an_address_that_refuses_fails_the_run_and_the_others_hear_of_it(ran: Ran) -> None:
    assert ran.kept.codes[0] == 1
    assert [message["title"] for message in ran.messages[1:]] == ["任务失败：提醒审核"]
    failure = ran.messages[1]["message"]
    assert "失败的任务：发送提醒（remind）。" in failure
    assert "请检查 WWTS_NOTIFY 里的地址和网络。" in failure
    assert "https://airflow.shop.example/dags/remind_reviewers/runs/" in failure


def test_no_token_is_in_a_log_or_in_airflows_database(ran: Ran) -> None:
    told = next(line for line in ran.kept.said.splitlines() if '"message_not_sent"' in line)
    assert "Failed to send JSON POST notification" in told  # Apprise's words, without the address
    assert TOKEN not in ran.kept.said
    assert TOKEN.encode() not in ran.kept.database


def test_with_nobody_to_tell_it_is_skipped_and_says_so(ran: Ran) -> None:
    assert ran.kept.codes[1:] == [0]
    said = ran.kept.said.encode().decode("unicode_escape", "replace") + ran.kept.said
    assert "没有设置 WWTS_NOTIFY，不发送提醒" in said
