//! A bench program in another role, as a process of its own that is killed.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Error, Read, Result, stdin};
use std::process::{Child, ChildStdout, Command, Stdio};

/// This program, started once more, and killed when it has said its word.
#[derive(Debug)]
pub struct Role {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Role {
    /// Starts this program with other arguments.
    ///
    /// # Errors
    /// Those of starting a process.
    pub fn start<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().ok_or(Error::other("no output"))?;
        let stdout = BufReader::new(stdout);
        Ok(Self { child, stdout })
    }

    /// What follows `word` in its next line; then kill -9.
    ///
    /// # Errors
    /// Another word, or those of reading and killing.
    pub fn say(mut self, word: &str) -> Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        self.child.kill()?;
        self.child.wait()?;
        let said = line.trim().strip_prefix(word);
        let said = said.ok_or_else(|| Error::other(format!("{line:?} instead of {word}")))?;
        Ok(said.trim().to_owned())
    }

    /// For the one that is started: keeps what it has open until it is killed.
    pub fn wait_for_the_end() {
        let _ = stdin().read(&mut [0]);
    }
}
