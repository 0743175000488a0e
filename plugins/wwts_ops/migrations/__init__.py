"""How the tables of our database came to be, one file a step; Alembic runs them (see ``wwts_ops.database``)."""
