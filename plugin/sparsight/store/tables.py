"""The tables as queries name them. The schema itself is migrations.py; a test holds both together."""

from sqlalchemy import Column, Integer, LargeBinary, MetaData, String, Table, Text

metadata = MetaData()

schema_version = Table("schema_version", metadata, Column("version", Integer))
episodes = Table(
    "episodes",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("id", String),
    Column("study_sha256", String),  # a hash: it only serves to filter, and a study's id may be any text
    Column("body", Text),  # canonical JSON (records.py), with the hash of its arrays
)
arrays = Table(
    "arrays",
    metadata,
    Column("sha256", String, primary_key=True),
    Column("data", LargeBinary),  # packed (blobs.py): the tokens of answers and their scores
)
feedback = Table(
    "feedback",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("feedback_key", String),
    Column("episode_id", String),
    Column("content_sha256", String),  # of all but the time: what makes a repeated key the same correction
    Column("body", Text),
    Column("reward", Text),
)
changes = Table(  # a correction without any was submitted when it was made
    "feedback_changes",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("change_key", String),
    Column("feedback_key", String),
    Column("state", String),  # draft | submitted | withdrawn: what the change led to
    Column("body", Text),  # canonical JSON: change, by, created
)
learned = Table(
    "learned",
    metadata,
    Column("policy_id", String, primary_key=True),
    Column("feedback_key", String, primary_key=True),
    Column("role", String),  # train | heldout
)
features = Table(
    "features",
    metadata,
    Column("volume_sha256", String, primary_key=True),
    Column("reader", String, primary_key=True),
    Column("blob", String),
)
shadows = Table(
    "shadows",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("episode_id", String),
    Column("policy_id", String),
    Column("body", Text),  # canonical JSON (shadows.py)
)
audit = Table(
    "audit",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("entry", Text),  # canonical JSON: seq, time, kind, body
    Column("previous", String),
    Column("sha256", String),  # of previous + entry
)
