//! What the demo prints: steps, promises, progress.

use std::io::{IsTerminal, Write, stdout};
use std::time::Instant;

/// The output, and whether every promise has held so far.
pub(crate) struct Screen {
    started: Instant,
    terminal: bool,
    steps: u32,
    broken: u32,
    kept: u32,
}

impl Screen {
    pub(crate) fn new() -> Self {
        let terminal = stdout().is_terminal();
        Self {
            started: Instant::now(),
            terminal,
            steps: 0,
            broken: 0,
            kept: 0,
        }
    }

    /// A new part of the story.
    pub(crate) fn step(&mut self, title: &str) {
        self.steps += 1;
        let seconds = self.started.elapsed().as_secs_f32();
        println!("\n{}. {title}  ({seconds:.1} s)", self.steps);
    }

    /// Something that was done or seen.
    pub(crate) fn say(&self, text: &str) {
        println!("   {text}");
    }

    /// One of the promises, and whether it held.
    pub(crate) fn promise(&mut self, held: bool, text: &str, seen: &str) {
        if held {
            self.kept += 1;
            println!("   ok      {text:<52} {seen}");
        } else {
            self.broken += 1;
            println!("   BROKEN  {text:<52} {seen}");
        }
    }

    /// A line that is overwritten by the next one; only where somebody looks.
    pub(crate) fn progress(&self, text: &str) {
        if self.terminal {
            print!("\r\x1b[2K   … {text}");
            // Progress that does not arrive is no reason to stop.
            let _ = stdout().flush();
        }
    }

    /// Clears the line of progress.
    pub(crate) fn progress_ends(&self) {
        if self.terminal {
            print!("\r\x1b[2K");
        }
    }

    /// The last line; true if every promise held.
    pub(crate) fn verdict(&self) -> bool {
        let seconds = self.started.elapsed().as_secs_f32();
        if self.broken == 0 {
            println!("\nAll {} promises held, in {seconds:.1} s.", self.kept);
        } else {
            println!(
                "\n{} of {} promises were broken.",
                self.broken,
                self.broken + self.kept
            );
        }
        self.broken == 0
    }
}
