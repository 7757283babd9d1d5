//! Completions for shells.

use clap::Command;
use clap_complete::Shell;

use crate::cli::global::print_bytes;

/// Prints a shell's completions.
#[derive(Debug, clap::Args)]
pub struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    /// Does it for the whole command line; returns the exit status.
    pub fn execute(self, mut root: Command) -> anyhow::Result<u8> {
        let name = root.get_name().to_owned();
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut root, name, &mut script);
        print_bytes(&script)?;
        Ok(0)
    }
}
