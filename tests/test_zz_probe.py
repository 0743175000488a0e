import sys
sys.path.insert(0,'/work/main/tests'); 
def test_p(s3_server):
    from wwts_ops.storage import Store
    import traceback
    s=Store(f"s3://{s3_server.bucket}/p", s3_server.endpoint)
    def t(name,f):
        try: print(name, '->', repr(f()))
        except BaseException as e: print(name,'!!',type(e).__mro__[:3],str(e)[:300], repr(e.__cause__)[:200])
    t('create', lambda: s.create('a', b'{"sequence":1}'))
    t('create2', lambda: s.create('a', b'2'))
    p=s.read_pointer('a'); print(p)
    t('rep', lambda: s.replace_pointer('a', {}, p))
    t('rep stale', lambda: s.replace_pointer('a', {}, p))
    from wwts_ops import storage
    def rawm():
        s.fs.pipe_file(s.path('a'), b'x', IfMatch='"zz"')
    t('raw', rawm)
    t('raw create', lambda: s.fs.pipe_file(s.path('a'), b'x', mode='create'))
    try: rawm()
    except OSError as e: print(e.__cause__.response, e.args)
    t('del missing', lambda: s.delete('nope'))
    t('fs rm missing', lambda: s.fs.rm_file(s.path('nope')))
    s.write_bytes('tags/x.parquet', b'1'); s.write_bytes('tags2/x.parquet', b'1'); s.write_bytes('tags.parquet', b'1')
    t('list', lambda: s.list('tags')); t('list', lambda: s.list('none')); t('list', lambda: s.list('tags/x.parquet'))
    t('read none', lambda: s.read_bytes('nope'))
    b=Store("s3://no-such-bucket/p", s3_server.endpoint)
    t('nb exists', lambda: b.exists('a')); t('nb read', lambda: b.read_bytes('a')); t('nb write', lambda: b.write_bytes('a', b'')); t('nb list', lambda: b.list('a')); t('nb create', lambda: b.create('a', b'')); t('nb ptr', lambda: b.read_pointer('a')); t('nb open', lambda: b.open('a')); t('nb put', lambda: b.put('a', b'')); t('nb delete', lambda: b.delete('a'))
    import time
    for ep in ("http://127.0.0.1:1", "http://127.0.0.1:41200","http://nohost.invalid:9"):
        c=Store("s3://b/p", ep)
        for n in ("exists","read_bytes","list","read_pointer","delete"):
            t0=time.time(); t('closed '+n, lambda: getattr(c,n)('a')); print(time.time()-t0)
        t('closed write', lambda: c.write_bytes('a', b'')); t('closed create', lambda: c.create('a', b''))
    f=s.fs.open(s.path('a'),'rb'); s.write_bytes('a', b'new')
    t('changed', lambda: f.read())
    s.write_bytes('empty', b''); t('empty ptr', lambda: s.read_pointer('empty'))
