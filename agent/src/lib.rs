//! EC2 on one Linux host.
//!
//! A request comes in through [`query`], which knows EC2's protocol and no action. It is parsed into one of the
//! [`actions`], which reads and changes the [`state`]: durable [`records`] kept in a [`store`]. An action never does
//! the work itself. It records what is to become of an instance, and the instance's actor in [`instances`] brings that
//! about, step by step, through the [`host`]: the only part that touches the machine.
//!
//! - [`catalogue`] has the instance types, [`keys`] the key pairs' cryptography, [`volumes`] the disks' types and files,
//!   [`images`] the images' files, [`network`] the address plans, and [`ids`] the forms of EC2's ids.
//! - [`iam`] knows who may do what, and makes the credentials of instance profiles.
//! - [`data_plane`] brings the network about that the records describe.
//! - [`metadata`] is what instances are told about themselves.
//! - [`events`] tells those who listen of what becomes of instances; [`scheduled_events`] is what was announced for them.
//! - [`metrics`] is what was counted, for a Prometheus server.
//! - [`identity`] signs what guests and clients are to believe.
//! - [`places`] bounds what each client takes of a service.
//! - [`config`] is what the operator can choose, and [`serve`] puts everything together.
//! - [`cli`] is what people type, and [`credentials`] the file by which clients find us.

// Nothing that a guest, a user or a disk can influence may end the process.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

pub mod actions;
pub mod catalogue;
pub mod cli;
pub mod config;
pub mod credentials;
pub mod data_plane;
pub mod events;
pub mod host;
pub mod iam;
pub mod identity;
pub mod ids;
pub mod images;
pub mod instances;
pub mod keys;
pub mod metadata;
pub mod metrics;
pub mod network;
pub mod places;
pub mod query;
pub mod records;
pub mod scheduled_events;
pub mod serve;
pub mod state;
pub mod store;
pub mod volumes;
