"""Runs the migrations on the connection that `lib.trajectories.database` hands over."""

from alembic import context

from lib.trajectories.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
context.run_migrations()
