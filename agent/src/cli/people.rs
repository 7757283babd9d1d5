//! The commands for people on the host. All of them but the completions ask the agent.

use clap::{Args, Subcommand};

use crate::cli::completions::Completions;
use crate::cli::console::Console;
use crate::cli::events::Events;
use crate::cli::global::Global;
use crate::cli::groups::Groups;
use crate::cli::identity::Identity;
use crate::cli::images::Images;
use crate::cli::instances::{Describe, Ps, Reboot, Start, Stop, Terminate};
use crate::cli::keys::Keys;
use crate::cli::maintenance::Maintenance;
use crate::cli::network::Network;
use crate::cli::run::Run;
use crate::cli::snapshots::Snapshots;
use crate::cli::ssh::Ssh;
use crate::cli::tags::Tag;
use crate::cli::types::Types;
use crate::cli::volumes::Volumes;

/// For the end of the program's help.
pub const EXAMPLES: &str = "\
Examples:
  innkeeper image register /var/lib/innkeeper/import/micro --name micro
  innkeeper key create me --file me.pem
  innkeeper run micro --name web --key me --wait
  innkeeper ps
  innkeeper console web --follow
  innkeeper ssh web -- uptime
  innkeeper image create web --name web-2 --wait
  innkeeper stop web --wait
  innkeeper ps --filter tag:Role=db --quiet | xargs innkeeper terminate
  innkeeper describe web --output json

Instances are named by their ids or by their tag Name. Exit status: 0 done; 1 not done; 2 wrong usage.";

/// The commands for people on the host.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Launch instances
    Run(Asking<Run>),
    /// List instances
    Ps(Asking<Ps>),
    /// Show everything about instances
    Describe(Asking<Describe>),
    /// Stop instances
    Stop(Asking<Stop>),
    /// Start instances that are stopped
    Start(Asking<Start>),
    /// Reboot instances
    Reboot(Asking<Reboot>),
    /// End instances for good
    Terminate(Asking<Terminate>),
    /// Print what an instance says on its console
    Console(Asking<Console>),
    /// Log in to an instance, or run a command there
    Ssh(Asking<Ssh>),
    /// Print what has become of instances
    Events(Asking<Events>),
    /// Show how instances are, and announce events for them
    Instance(Choosing<Maintenance>),
    /// List, register, create and remove images
    Image(Choosing<Images>),
    /// List, create, import and remove key pairs
    Key(Choosing<Keys>),
    /// List, create, attach, detach, change, check and remove volumes
    Volume(Choosing<Volumes>),
    /// List, create, copy and remove snapshots of volumes
    Snapshot(Choosing<Snapshots>),
    /// List security groups
    Group(Choosing<Groups>),
    /// Say why packets are dropped
    Net(Choosing<Network>),
    /// Tag a resource
    Tag(Asking<Tag>),
    /// Print what the agent's signatures are verified with
    Identity(Choosing<Identity>),
    /// List instance types
    Types(Asking<Types>),
    /// Print completions for a shell
    Completions(Completions),
}

/// A command with what every command has.
#[derive(Debug, Args)]
pub struct Asking<Arguments: Args> {
    #[command(flatten)]
    arguments: Arguments,
    #[command(flatten)]
    global: Global,
}

/// A command that has commands, with what every command has.
#[derive(Debug, Args)]
pub struct Choosing<Commands: Subcommand> {
    #[command(subcommand)]
    command: Commands,
    #[command(flatten)]
    global: Global,
}

impl Command {
    /// Does it; returns the exit status. `root` is the whole command line.
    pub fn execute(self, root: clap::Command) -> anyhow::Result<u8> {
        match self {
            Self::Run(Asking { arguments, global }) => arguments.execute(&global),
            Self::Ps(Asking { arguments, global }) => arguments.execute(&global),
            Self::Describe(Asking { arguments, global }) => arguments.execute(&global),
            Self::Stop(Asking { arguments, global }) => arguments.execute(&global),
            Self::Start(Asking { arguments, global }) => arguments.execute(&global),
            Self::Reboot(Asking { arguments, global }) => arguments.execute(&global),
            Self::Terminate(Asking { arguments, global }) => arguments.execute(&global),
            Self::Console(Asking { arguments, global }) => arguments.execute(&global),
            Self::Ssh(Asking { arguments, global }) => arguments.execute(&global),
            Self::Events(Asking { arguments, global }) => arguments.execute(&global),
            Self::Instance(Choosing { command, global }) => command.execute(&global),
            Self::Image(Choosing { command, global }) => command.execute(&global),
            Self::Key(Choosing { command, global }) => command.execute(&global),
            Self::Volume(Choosing { command, global }) => command.execute(&global),
            Self::Snapshot(Choosing { command, global }) => command.execute(&global),
            Self::Group(Choosing { command, global }) => command.execute(&global),
            Self::Net(Choosing { command, global }) => command.execute(&global),
            Self::Tag(Asking { arguments, global }) => arguments.execute(&global),
            Self::Identity(Choosing { command, global }) => command.execute(&global),
            Self::Types(Asking { arguments, global }) => arguments.execute(&global),
            Self::Completions(completions) => completions.execute(root),
        }
    }
}
