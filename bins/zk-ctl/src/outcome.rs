use std::io::{self, IsTerminal, Write};

use serde_json::Value;
use zeroize::Zeroizing;

/// What a command has to say.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// For a person.
    pub output: Output,
    /// For a script, see [`Outcome::to_json`].
    pub(crate) json: Value,
    /// What to do next.
    pub hints: Vec<String>,
    /// The program's exit code.
    pub exit: u8,
}

/// What goes to standard output when no JSON is asked for.
#[derive(Clone)]
pub enum Output {
    /// Bytes as they are; they may be secret.
    Bytes(Zeroizing<Vec<u8>>),
    /// What there was to say has been said already, line by line.
    Said,
    /// Lines, without the last one's end.
    Text(String),
}

/// Shows no bytes.
impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "Bytes({})", bytes.len()),
            Self::Said => f.write_str("Said"),
            Self::Text(text) => write!(f, "Text({text:?})"),
        }
    }
}

impl Outcome {
    /// For a script: one object. Members may be added, none goes away.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut json = self.json.clone();
        // here and not before, since they may be secret
        if let Output::Bytes(bytes) = &self.output {
            json["data"] = base16ct::lower::encode_string(bytes).into();
        }
        json
    }

    pub(crate) fn done(text: String, json: Value) -> Self {
        Self {
            output: Output::Text(text),
            json,
            hints: Vec::new(),
            exit: 0,
        }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }
}

/// Rows of equal length in columns: the last one is as wide as it is.
pub(crate) fn table<R: AsRef<[String]>>(rows: &[R]) -> String {
    let columns = rows.first().map_or(0, |row| row.as_ref().len());
    let width = |column: usize| rows.iter().map(|row| row.as_ref()[column].len()).max();
    let widths: Vec<_> = (0..columns).filter_map(width).collect();
    let line = |row: &R| {
        let cells: Vec<_> = row
            .as_ref()
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A line on a terminal that is written over.
pub(crate) struct Progress {
    shown: bool,
    terminal: bool,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self {
            shown: false,
            terminal: io::stderr().is_terminal(),
        }
    }

    pub(crate) fn show(&mut self, text: &str) {
        if self.terminal {
            self.shown = true;
            // Nothing is lost with it.
            let _ = write!(io::stderr(), "\r\x1b[K{text}");
        }
    }

    pub(crate) fn end(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
