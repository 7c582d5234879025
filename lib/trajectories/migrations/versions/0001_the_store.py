"""The tables of the first release."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:

    op.create_table(
        "images",
        sa.Column("key", sa.String(length=32), nullable=False),
        sa.Column("patient", sa.String(length=32), nullable=False),
        sa.Column("modality", sa.String(length=8), nullable=False),
        sa.Column("burned_in", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_images")),
    )
    with op.batch_alter_table("images", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_images_patient"), ["patient"], unique=False)

    op.create_table(
        "rejections",
        sa.Column("key", sa.String(length=32), nullable=False),
        sa.Column("run", sa.String(length=64), nullable=False),
        sa.Column("target", sa.Integer(), nullable=False),
        sa.Column("annotator", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created", sa.String(length=40), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_rejections")),
    )
    with op.batch_alter_table("rejections", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_rejections_run"), ["run"], unique=False)

    op.create_table(
        "stores",
        sa.Column("owner", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("owner", name=op.f("pk_stores")),
    )
    op.create_table(
        "labels",
        sa.Column("key", sa.String(length=32), nullable=False),
        sa.Column("image", sa.String(length=32), nullable=False),
        sa.Column("annotator", sa.Text(), nullable=False),
        sa.Column("source", sa.String(length=32), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created", sa.String(length=40), nullable=False),
        sa.ForeignKeyConstraint(["image"], ["images.key"], name=op.f("fk_labels_image_images")),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_labels")),
    )
    with op.batch_alter_table("labels", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_labels_image"), ["image"], unique=False)

    op.create_table(
        "trajectories",
        sa.Column("key", sa.String(length=32), nullable=False),
        sa.Column("schema", sa.Integer(), nullable=False),
        sa.Column("episode", sa.String(length=96), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("source", sa.String(length=16), nullable=False),
        sa.Column("lesson", sa.Text(), nullable=False),
        sa.Column("kept_from", sa.Integer(), nullable=False),
        sa.Column("run", sa.String(length=64), nullable=False),
        sa.Column("target", sa.Integer(), nullable=False),
        sa.Column("user", sa.Text(), nullable=False),
        sa.Column("created", sa.String(length=40), nullable=False),
        sa.Column("image", sa.String(length=32), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("plane", sa.String(length=16), nullable=False),
        sa.Column("slice", sa.Integer(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("pixel_mm", sa.Double(), nullable=False),
        sa.Column("picture", sa.String(length=64), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("overlay", sa.String(length=32), nullable=False),
        sa.Column("window", sa.JSON(), nullable=False),
        sa.Column("max_turns", sa.Integer(), nullable=False),
        sa.Column("engine", sa.Text(), nullable=False),
        sa.Column("weights", sa.String(length=32), nullable=False),
        sa.Column("maker", sa.JSON(), nullable=False),
        sa.Column("given", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("stop", sa.String(length=32), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.Column("final_turn", sa.Integer(), nullable=True),
        sa.Column("chosen_because", sa.Text(), nullable=False),
        sa.Column("confidence", sa.Float(), nullable=True),
        sa.Column("mask", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["image"], ["images.key"], name=op.f("fk_trajectories_image_images")),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_trajectories")),
        sa.UniqueConstraint("episode", "version", name=op.f("uq_trajectories_episode")),
    )
    with op.batch_alter_table("trajectories", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_trajectories_created"), ["created"], unique=False)
        batch_op.create_index(batch_op.f("ix_trajectories_engine"), ["engine"], unique=False)
        batch_op.create_index("ix_trajectories_image_target", ["image", "label"], unique=False)
        batch_op.create_index(batch_op.f("ix_trajectories_run"), ["run"], unique=False)
        batch_op.create_index(batch_op.f("ix_trajectories_source"), ["source"], unique=False)

    op.create_table(
        "gradings",
        sa.Column("key", sa.String(length=32), nullable=False),
        sa.Column("trajectory", sa.String(length=32), nullable=False),
        sa.Column("label", sa.String(length=32), nullable=False),
        sa.Column("created", sa.String(length=40), nullable=False),
        sa.Column("reference", sa.String(length=64), nullable=False),
        sa.Column("recipe", sa.String(length=64), nullable=False),
        sa.Column("dropped", sa.Text(), nullable=False),
        sa.Column("iou", sa.Float(), nullable=True),
        sa.Column("dice", sa.Float(), nullable=True),
        sa.Column("total", sa.Float(), nullable=True),
        sa.Column("parts", sa.JSON(), nullable=False),
        sa.Column("steps", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["label"], ["labels.key"], name=op.f("fk_gradings_label_labels")),
        sa.ForeignKeyConstraint(["trajectory"], ["trajectories.key"], name=op.f("fk_gradings_trajectory_trajectories")),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_gradings")),
        sa.UniqueConstraint("trajectory", "label", "recipe", name=op.f("uq_gradings_trajectory")),
    )
    with op.batch_alter_table("gradings", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_gradings_label"), ["label"], unique=False)

    op.create_table(
        "steps",
        sa.Column("trajectory", sa.String(length=32), nullable=False),
        sa.Column("turn", sa.Integer(), nullable=False),
        sa.Column("actor", sa.String(length=16), nullable=False),
        sa.Column("observation", sa.String(length=32), nullable=False),
        sa.Column("reply", sa.Text(), nullable=False),
        sa.Column("thought", sa.Text(), nullable=False),
        sa.Column("action", sa.JSON(), nullable=False),
        sa.Column("mask", sa.String(length=64), nullable=True),
        sa.Column("score", sa.Float(), nullable=True),
        sa.Column("support", sa.Float(), nullable=True),
        sa.Column("seconds", sa.JSON(), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("undone", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["trajectory"], ["trajectories.key"], name=op.f("fk_steps_trajectory_trajectories")),
        sa.PrimaryKeyConstraint("trajectory", "turn", name=op.f("pk_steps")),
    )
