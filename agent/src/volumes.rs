//! The volumes' files.
