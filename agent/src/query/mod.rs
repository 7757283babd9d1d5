//! EC2's Query protocol: what a request is, who sent it, and how it is answered. It knows no action.
//!
//! [`http`] takes a request from the network, where [`listener`] has let its sender in, [`sigv4`] finds out who signed it, [`parameters`] turns its dotted names
//! into a tree and the tree into an action's type, [`dispatch`] runs that, and [`xml`] or [`error`] writes the answer.
//! What many actions share is here too: [`filters`], [`pages`], [`tags`] and [`idempotency`].

pub mod dispatch;
pub mod error;
pub mod filters;
pub mod http;
pub mod idempotency;
pub mod listener;
pub mod pages;
pub mod parameters;
pub mod sigv4;
pub mod tags;
pub mod xml;

pub use dispatch::{Action, Caller, Context, Service};
pub use error::ApiError;
