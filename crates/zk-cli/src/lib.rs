//! What the command lines of zk's programs have in common.
//!
//! ```
//! // A name that somebody else chose can't pose as a line of the program's.
//! let told = zk_cli::printable("no device\u{1b}[2J named\nok: all is well");
//! assert_eq!(told, "no device\\u{1b}[2J named\n    ok: all is well");
//! ```
#![forbid(unsafe_code)]

use std::error::Error;
use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::sync::Arc;

#[cfg(feature = "hsm")]
mod key;
#[cfg(feature = "log")]
mod log;

#[cfg(feature = "hsm")]
pub use key::KeyUri;
#[cfg(feature = "log")]
pub use log::log_filter;

/// A line to standard error, if anybody is there: `eprintln!` would panic.
pub fn tell(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Tells an error on standard error: `whose` it is, a program's or of a place in what it
/// was given; what happened, then its causes as far as it
/// doesn't tell them itself, and what to do if a file is behind it.
///
/// ```text
/// zk-setup: cannot read pi-01.csr
///   because: No such file or directory (os error 2)
///   next: check the path: is all of it there?
/// ```
pub fn tell_error(whose: &str, error: &(dyn Error + 'static)) {
    tell(&told(whose, error));
}

fn told(whose: &str, error: &(dyn Error + 'static)) -> String {
    let mut said = error.to_string();
    let mut told = format!("{whose}: {}", printable(&said));
    let mut next = None;
    let mut cause = Some(error);
    while let Some(error) = cause {
        let text = error.to_string();
        if !said.contains(&text) {
            let _ = write!(told, "\n  because: {}", printable(&text));
            said = text;
        }
        next = io_error(error).and_then(cure).or(next);
        cause = error.source();
    }
    if let Some(next) = next {
        let _ = write!(told, "\n  next: {next}");
    }
    told
}

fn io_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    let shared = || error.downcast_ref::<Arc<io::Error>>().map(AsRef::as_ref);
    error.downcast_ref().or_else(shared)
}

/// What to do about a file that can't be used.
fn cure(error: &io::Error) -> Option<&'static str> {
    match error.kind() {
        io::ErrorKind::NotFound => Some("check the path: is all of it there?"),
        io::ErrorKind::PermissionDenied => {
            Some("run this as the file's owner, or have the owner permit it")
        }
        io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory => {
            Some("check the path: a file is needed where a directory is, or the other way round")
        }
        io::ErrorKind::AlreadyExists => Some("choose another path, or move away what is there"),
        io::ErrorKind::InvalidData => Some("this is no text file; check the path"),
        io::ErrorKind::StorageFull => Some("the disk is full: free some space, and try again"),
        _ => None,
    }
}

/// Text that may hold what others chose, made fit for a terminal: all but plain
/// letters is escaped, and lines after the first are indented, so that none of
/// them can pose as another.
#[must_use]
pub fn printable(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(|line| escaped(line).to_string()).collect();
    lines.join("\n    ")
}

/// Text of others with everything escaped that a terminal would not simply
/// show: control characters, line ends, those that have no width or turn the
/// direction of writing.
#[must_use]
pub fn escaped(text: &str) -> Escaped<'_> {
    clipped(text, usize::MAX)
}

/// The same, of the first `max` characters.
#[must_use]
pub fn clipped(text: &str, max: usize) -> Escaped<'_> {
    Escaped { text, max }
}

/// [`escaped`] or [`clipped`] text.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a> {
    text: &'a str,
    max: usize,
}

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut chars = self.text.chars();
        for c in chars.by_ref().take(self.max) {
            match c {
                '"' | '\'' | '\\' => f.write_char(c)?,
                _ => write!(f, "{}", c.escape_debug())?,
            }
        }
        if chars.next().is_some() {
            f.write_str("…")
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Told(&'static str, Box<dyn Error>);

    impl fmt::Display for Told {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Told {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&*self.1)
        }
    }

    fn absent() -> io::Error {
        io::Error::from(io::ErrorKind::NotFound)
    }

    #[test]
    fn an_error_is_told_with_its_causes_and_what_to_do() {
        let error = Told("cannot start", Box::new(Told("no key", Box::new(absent()))));
        assert_eq!(
            told("zk", &error),
            "zk: cannot start\n  because: no key\n  because: entity not found\n  \
             next: check the path: is all of it there?"
        );
    }

    #[test]
    fn a_cause_that_was_told_is_not_told_again_and_is_still_known() {
        let error = Told("key.pem: entity not found", Box::new(Arc::new(absent())));
        assert_eq!(
            told("zk", &error),
            "zk: key.pem: entity not found\n  \
             next: check the path: is all of it there?"
        );
    }

    #[test]
    fn nobody_s_text_poses_as_another_line() {
        let error = Told("a\n  next: run this\u{202e}", Box::new(absent()));
        assert!(told("zk", &error).starts_with("zk: a\n      next: run this\\u{202e}\n"));
        assert_eq!(clipped("ab\ncd", 3).to_string(), "ab\\n…");
    }
}
