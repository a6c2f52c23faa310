//! How a command ends when it does not succeed: one line, one exit code.
//!
//! Guarantees: no line break within the line; a pipe that was closed by its reader is no failure. Leaves out: logs.

use std::ffi::OsString;
use std::fmt;
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

/// Says something beside the result, on standard error.
pub(super) fn note(text: &str) {
    // Whoever closed standard error does not want to know.
    let _ = writeln!(io::stderr(), "quorate: {text}");
}

/// Its line, without what stands before it on standard error.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PipeClosed => f.write_str("the output was closed"),
            Self::Line(_, message) => f.write_str(&one_line(message)),
        }
    }
}

impl From<client::Error> for Failure {
    fn from(error: client::Error) -> Self {
        let exit = match &error {
            client::Error::Usage(_) | client::Error::Local { .. } => Exit::Usage,
            client::Error::Refused(_) => Exit::Refused,
            client::Error::Unavailable { .. } | client::Error::OutcomeUnknown { .. } | client::Error::Incomplete(_) => {
                Exit::Unavailable
            }
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
pub(super) fn usage_of(error: &clap::Error, definition: &clap::Command) -> ExitCode {
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
        _ => {
            let command = command_of(definition, std::env::args_os());
            Failure::usage(parser_line(&error.to_string(), &command)).report()
        }
    }
}

/// The message of the parser without the usage block behind it, on one line, with a hint where to read on.
fn parser_line(rendered: &str, command: &str) -> String {
    let paragraphs = rendered.split("\n\n").map(str::trim).take_while(|paragraph| !paragraph.starts_with("Usage:"));
    let said: Vec<_> = paragraphs.filter(|paragraph| !paragraph.starts_with("For more information")).collect();
    let line = one_line(said.join("; ").trim_start_matches("error: "));
    format!("{line}; see '{command} --help'")
}

/// The command that was meant: `quorate` and the names of subcommands among the words that were typed.
fn command_of(mut command: &clap::Command, words: impl Iterator<Item = OsString>) -> String {
    let mut path = command.get_name().to_owned();
    for word in words.skip(1) {
        if let Some(subcommand) = command.find_subcommand(&word) {
            command = subcommand;
            path = format!("{path} {}", command.get_name());
        }
    }
    path
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use clap::Command;

    use super::*;

    #[test]
    fn errors_of_the_parser_are_told_on_one_line() {
        let rendered = "error: unexpected argument '--zoom' found\n\n  tip: a similar argument exists: '--zone'\n\n\
                        Usage: quorate serve [OPTIONS]\n\nFor more information, try '--help'.\n";
        let expected = "unexpected argument '--zoom' found; tip: a similar argument exists: '--zone'; \
                        see 'quorate serve --help'";
        assert_eq!(parser_line(rendered, "quorate serve"), expected);
        let rendered = "error: required arguments were not provided:\n  <KEY>\n\nUsage: quorate get <KEY>\n";
        let expected = "required arguments were not provided: <KEY>; see 'quorate get --help'";
        assert_eq!(parser_line(rendered, "quorate get"), expected);
    }

    #[test]
    fn the_hint_names_the_command_that_was_meant() {
        let list = Command::new("list");
        let definition = Command::new("quorate").subcommand(Command::new("member").subcommand(list));
        let words = ["q", "--endpoint", "x", "member", "list", "--zoom"].map(OsString::from);
        assert_eq!(command_of(&definition, words.into_iter()), "quorate member list");
    }
}
