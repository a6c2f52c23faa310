//! `completions`: what a shell needs to complete commands.
//!
//! Guarantees: generated from the definition of the command line itself. Leaves out: installing it.

use clap_complete::Shell;

use super::output::Format;
use super::{Failure, Output};

/// Print the completions of a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  quorate completions bash > /etc/bash_completion.d/quorate")]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self, mut command: clap::Command) -> Result<(), Failure> {
        // Through memory, because the generator panics where a pipe is closed.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "quorate", &mut script);
        let mut out = Output::new(Format::Text);
        out.text(&String::from_utf8_lossy(&script))?;
        out.finish()
    }
}
