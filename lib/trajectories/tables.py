"""The tables of the store. Rows are added and never changed; `forget` alone removes them.

`lib/trajectories/migrations` makes them: a change here needs a migration there, and a test compares the two.
"""

from typing import Any, ClassVar

from sqlalchemy import JSON, Float, ForeignKey, Index, Integer, MetaData, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

DIGEST = String(64)
KEY = String(32)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar = {dict[str, Any]: JSON, list[Any]: JSON}


class StoreRow(Base):
    """One row: whose database it is."""

    __tablename__ = "stores"
    owner: Mapped[str] = mapped_column(KEY, primary_key=True)
    """Fingerprint of the salt in the folder of the store's files."""


class ImageRow(Base):
    """An image that episodes were recorded on."""

    __tablename__ = "images"
    key: Mapped[str] = mapped_column(KEY, primary_key=True)
    patient: Mapped[str] = mapped_column(KEY, index=True)
    modality: Mapped[str] = mapped_column(String(8))
    burned_in: Mapped[str] = mapped_column(Text)
    name: Mapped[str | None] = mapped_column(Text)
    """What the server calls the image; only where the store keeps identifiers."""


class TrajectoryRow(Base):
    """A version of an episode."""

    __tablename__ = "trajectories"
    __table_args__ = (UniqueConstraint("episode", "version"), Index("ix_trajectories_image_target", "image", "label"))
    key: Mapped[str] = mapped_column(KEY, primary_key=True)
    schema: Mapped[int] = mapped_column(Integer)
    episode: Mapped[str] = mapped_column(String(96))
    version: Mapped[int] = mapped_column(Integer)
    source: Mapped[str] = mapped_column(String(16), index=True)
    lesson: Mapped[str] = mapped_column(Text)
    kept_from: Mapped[int] = mapped_column(Integer)
    run: Mapped[str] = mapped_column(String(64), index=True)
    target: Mapped[int] = mapped_column(Integer)
    user: Mapped[str] = mapped_column(Text)
    created: Mapped[str] = mapped_column(String(40), index=True)
    image: Mapped[str] = mapped_column(ForeignKey("images.key"))
    content_hash: Mapped[str] = mapped_column(DIGEST)
    """Of the image's voxels then."""
    plane: Mapped[str] = mapped_column(String(16))
    slice: Mapped[int] = mapped_column(Integer)
    width: Mapped[int] = mapped_column(Integer)
    height: Mapped[int] = mapped_column(Integer)
    pixel_mm: Mapped[float]
    picture: Mapped[str] = mapped_column(DIGEST)
    prompt: Mapped[str] = mapped_column(Text)
    label: Mapped[str] = mapped_column(Text)
    overlay: Mapped[str] = mapped_column(String(32))
    window: Mapped[dict[str, Any]]
    max_turns: Mapped[int] = mapped_column(Integer)
    engine: Mapped[str] = mapped_column(Text, index=True)
    weights: Mapped[str] = mapped_column(KEY)
    maker: Mapped[dict[str, Any]]
    given: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """As `lib.agent.record` writes it, with the mask's digest in place of the mask."""
    stop: Mapped[str] = mapped_column(String(32))
    detail: Mapped[str] = mapped_column(Text)
    answer: Mapped[str] = mapped_column(Text)
    final_turn: Mapped[int | None] = mapped_column(Integer)
    chosen_because: Mapped[str] = mapped_column(Text)
    confidence: Mapped[float | None] = mapped_column(Float)
    mask: Mapped[str] = mapped_column(DIGEST)


class StepRow(Base):
    """A step of a trajectory."""

    __tablename__ = "steps"
    trajectory: Mapped[str] = mapped_column(ForeignKey("trajectories.key"), primary_key=True)
    turn: Mapped[int] = mapped_column(Integer, primary_key=True)
    actor: Mapped[str] = mapped_column(String(16))
    observation: Mapped[str] = mapped_column(KEY)
    reply: Mapped[str] = mapped_column(Text)
    thought: Mapped[str] = mapped_column(Text)
    action: Mapped[dict[str, Any]]
    mask: Mapped[str | None] = mapped_column(DIGEST)
    score: Mapped[float | None] = mapped_column(Float)
    support: Mapped[float | None] = mapped_column(Float)
    seconds: Mapped[dict[str, Any]]
    details: Mapped[dict[str, Any]]
    undone: Mapped[bool]


class LabelRow(Base):
    """A final label of one target of one image, as it arrived from an annotator."""

    __tablename__ = "labels"
    key: Mapped[str] = mapped_column(KEY, primary_key=True)
    image: Mapped[str] = mapped_column(ForeignKey("images.key"), index=True)
    annotator: Mapped[str] = mapped_column(Text)
    source: Mapped[str] = mapped_column(String(32))
    """Where it came from: "api", "review", "pacs", "folder", "command"."""
    name: Mapped[str] = mapped_column(Text)
    created: Mapped[str] = mapped_column(String(40))


class GradingRow(Base):
    """A trajectory against a final label."""

    __tablename__ = "gradings"
    __table_args__ = (UniqueConstraint("trajectory", "label", "recipe"),)
    key: Mapped[str] = mapped_column(KEY, primary_key=True)
    trajectory: Mapped[str] = mapped_column(ForeignKey("trajectories.key"))
    label: Mapped[str] = mapped_column(ForeignKey("labels.key"), index=True)
    created: Mapped[str] = mapped_column(String(40))
    reference: Mapped[str] = mapped_column(DIGEST)
    """The label's mask in the view of the trajectory."""
    recipe: Mapped[str] = mapped_column(String(64))
    dropped: Mapped[str] = mapped_column(Text)
    """Why there is no reward; empty when there is one."""
    iou: Mapped[float | None] = mapped_column(Float)
    dice: Mapped[float | None] = mapped_column(Float)
    total: Mapped[float | None] = mapped_column(Float)
    parts: Mapped[dict[str, Any]]
    steps: Mapped[list[Any]]
    """For each step `turn`, `iou_before`, `iou_after`, `parts`, `total`."""


class RejectionRow(Base):
    """An annotator's word that a run is of no use."""

    __tablename__ = "rejections"
    key: Mapped[str] = mapped_column(KEY, primary_key=True)
    run: Mapped[str] = mapped_column(String(64), index=True)
    target: Mapped[int] = mapped_column(Integer)
    annotator: Mapped[str] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text)
    created: Mapped[str] = mapped_column(String(40))
