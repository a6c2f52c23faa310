//! How a command ends when it does not succeed: one line, one exit code.
//!
//! Guarantees: no line break within the line; a pipe that was closed by its reader is no failure. Leaves out: logs.

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::error::ErrorKind;

use crate::client;
use crate::config::ConfigError;

/// The exit codes of the contract, besides 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    /// The cluster said no.
    Refused = 1,
    /// The command makes no sense, or this machine does not allow it.
    Usage = 2,
    /// Nobody could serve it, or the outcome is not known.
    Unavailable = 3,
    /// Data is damaged.
    Integrity = 4,
}

/// Why a command did not succeed.
#[derive(Debug)]
pub(super) enum Failure {
    /// With an exit code and a line.
    Line(Exit, String),
    /// Whoever read the output has had enough.
    PipeClosed,
}

impl Failure {
    pub(super) fn refused(message: impl Into<String>) -> Self {
        Self::Line(Exit::Refused, message.into())
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::Line(Exit::Usage, message.into())
    }

    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::Line(Exit::Unavailable, message.into())
    }

    pub(super) fn integrity(message: impl Into<String>) -> Self {
        Self::Line(Exit::Integrity, message.into())
    }

    /// Tells it on standard error and gives the exit code.
    pub(super) fn report(&self) -> ExitCode {
        match self {
            Self::PipeClosed => ExitCode::SUCCESS,
            Self::Line(exit, message) => {
                // Whoever closed standard error does not want to know.
                let _ = writeln!(io::stderr(), "quorate: {}", one_line(message));
                ExitCode::from(*exit as u8)
            }
        }
    }
}

impl From<client::Error> for Failure {
    fn from(error: client::Error) -> Self {
        let exit = match &error {
            client::Error::Usage(_) | client::Error::Local { .. } => Exit::Usage,
            client::Error::Refused(_) => Exit::Refused,
            client::Error::Unavailable { .. } | client::Error::OutcomeUnknown { .. } => Exit::Unavailable,
            client::Error::Integrity(_) => Exit::Integrity,
        };
        Self::Line(exit, error.to_string())
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::usage(error.to_string())
    }
}

/// An error of writing to standard output.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::PipeClosed,
            _ => Self::unavailable(format!("can't write the output: {error}")),
        }
    }
}

/// What the parser of the command line has to say: help and version on standard output, an error as one line.
pub(super) fn usage_of(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // A pager that was closed early is no failure.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(Exit::Usage as u8)
        }
        _ => Failure::usage(parser_line(&error.to_string())).report(),
    }
}

/// The message of the parser without the usage block behind it, on one line, with a hint where to read on.
fn parser_line(rendered: &str) -> String {
    let paragraphs = rendered.split("\n\n").take_while(|paragraph| !paragraph.starts_with("Usage:"));
    let text =
        paragraphs.filter(|paragraph| !paragraph.starts_with("For more information")).collect::<Vec<_>>().join("; ");
    let line = one_line(text.trim_start_matches("error: "));
    let usage = rendered.lines().find_map(|line| line.strip_prefix("Usage: ")).unwrap_or("quorate");
    let command: Vec<_> = usage
        .split(' ')
        .take_while(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.starts_with('-'))
        .collect();
    format!("{}; see '{} --help'", line.trim_end_matches(';'), command.join(" "))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::parser_line;

    #[test]
    fn errors_of_the_parser_are_told_on_one_line() {
        let rendered = "error: unexpected argument '--zoom' found\n\n  tip: a similar argument exists: '--zone'\n\n\
                        Usage: quorate member list [OPTIONS]\n\nFor more information, try '--help'.\n";
        let expected = "unexpected argument '--zoom' found; tip: a similar argument exists: '--zone'; \
                        see 'quorate member list --help'";
        assert_eq!(parser_line(rendered), expected);
        let rendered =
            "error: the following required arguments were not provided:\n  <KEY>\n\nUsage: quorate get <KEY>\n";
        let expected = "the following required arguments were not provided: <KEY>; see 'quorate get --help'";
        assert_eq!(parser_line(rendered), expected);
        let rendered = "error: invalid value 'x' for '--rtt <D>': no\n\nFor more information, try '--help'.\n";
        assert_eq!(parser_line(rendered), "invalid value 'x' for '--rtt <D>': no; see 'quorate --help'");
    }
}
