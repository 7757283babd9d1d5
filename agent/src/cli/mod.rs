//! What people type.
//!
//! The commands for people on the host are clients of the agent's own EC2 API, as `aws` is.

pub mod answer;
pub mod client;
pub mod completions;
pub mod console;
pub mod global;
pub mod groups;
pub mod images;
pub mod instances;
pub mod keys;
pub mod names;
pub mod output;
pub mod people;
pub mod run;
pub mod tags;
pub mod types;
pub mod volumes;
pub mod wait;
