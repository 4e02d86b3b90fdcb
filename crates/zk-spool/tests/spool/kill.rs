//! The process is killed, again and again, while it appends and acknowledges.

use std::{
    io::{BufRead, BufReader, Lines, Write},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use zk_spool::{Engine, Full, Options, Spool, StreamId, SyncPolicy};

use crate::common::{Random, append, append_batch, content, defaults, effort, key, peek_all, tell};

const DIRECTORY: &str = "ZK_SPOOL_TEST_DIRECTORY";
const SEED: &str = "ZK_SPOOL_TEST_SEED";

pub(crate) fn options(seed: u64) -> Options {
    Options {
        cap: 1 << 20,
        segment_size: Some(if crate::ENGINE == Engine::Log { 4 } else { 64 } << 10),
        full: Full::DropOldest,
        sync: if seed.is_multiple_of(2) {
            SyncPolicy::Each
        } else {
            SyncPolicy::Every(Duration::from_millis(1))
        },
        ..defaults()
    }
}

/// What the child does: it says what it is about to do, does it, and says that
/// it is done.
#[test]
fn child() {
    let Ok(directory) = std::env::var(DIRECTORY) else {
        return;
    };
    let seed = std::env::var(SEED).unwrap().parse().unwrap();
    let mut random = Random(seed);
    let spool = Spool::open(directory, options(seed)).unwrap();
    let stream = spool.stream();
    let mut out = std::io::stdout();
    // Where a segment is not a file, a window may be in memory.
    let durable = || {
        if crate::ENGINE != Engine::Log {
            spool.sync().unwrap();
        }
    };
    let mut say = |line: String| {
        writeln!(out, "\n{line}")
            .and_then(|()| out.flush())
            .unwrap();
    };
    loop {
        match random.below(4) {
            0 => {
                let len = random.below(900) as usize;
                let sequence = append(&spool, len).unwrap();
                durable();
                say(format!("appended {stream} {sequence} {len}"));
            }
            1 => {
                let len = random.below(300) as usize;
                let appended = append_batch(&spool, &vec![len; 1 + len % 20]).unwrap();
                durable();
                for sequence in appended {
                    say(format!("appended {stream} {sequence} {len}"));
                }
            }
            _ => {
                let records = spool.peek(1 + random.below(12) as usize, 20_000).unwrap();
                if let Some(last) = records.last() {
                    let (stream, sequence) = key(last);
                    say(format!("acking {stream} {sequence}"));
                    spool.ack(last.position()).unwrap();
                    say(format!("acked {stream} {sequence}"));
                }
            }
        }
    }
}

/// What the children have said, of all streams in order.
#[derive(Default)]
pub(crate) struct Journal {
    streams: Vec<StreamId>,
    appended: Vec<(usize, u64, usize)>,
    acking: (usize, u64),
    acked: (usize, u64),
}

impl Journal {
    fn stream(&mut self, stream: StreamId) -> usize {
        let known = self.streams.iter().position(|known| *known == stream);
        known.unwrap_or_else(|| {
            self.streams.push(stream);
            self.streams.len() - 1
        })
    }

    fn line(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [verb, stream, rest @ ..] = &words[..] else {
            return;
        };
        let Some(stream) = parse_stream(stream) else {
            return;
        };
        let stream = self.stream(stream);
        let numbers: Vec<u64> = rest.iter().map(|word| word.parse().unwrap()).collect();
        match *verb {
            "appended" => self
                .appended
                .push((stream, numbers[0], numbers[1] as usize)),
            "acking" => self.acking = (stream, numbers[0]),
            "acked" => self.acked = (stream, numbers[0]),
            _ => {}
        }
    }
}

fn parse_stream(hex: &str) -> Option<StreamId> {
    if hex.len() != 32 {
        return None;
    }
    let value = u128::from_str_radix(hex, 16).ok()?;
    Some(StreamId(value.to_be_bytes()))
}

/// A child that works on a spool, and what it says.
pub(crate) struct Worker {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Worker {
    /// Starts one, and lets it work until it has said some lines.
    pub(crate) fn start(directory: &Path, seed: u64, journal: &mut Journal) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["kill::child", "--exact", "--nocapture"])
            .env(DIRECTORY, directory)
            .env(SEED, seed.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Sometimes not even until the spool is open: the harness says two.
        let patience = if seed.is_multiple_of(7) {
            2
        } else {
            20 + Random(seed).below(600)
        };
        for _ in 0..patience {
            journal.line(&lines.next().expect("the child goes on").unwrap());
        }
        Self { child, lines }
    }

    /// The number of its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Stops it where it is. What it had said is what it says.
    pub(crate) fn freeze(&self) {
        let child = Pid::from_child(&self.child);
        kill_process(child, Signal::STOP).unwrap();
        let (_, status) = waitpid(Some(child), WaitOptions::UNTRACED)
            .unwrap()
            .unwrap();
        assert!(status.stopped(), "{status:?}");
    }

    /// Kills it, and hears the rest.
    pub(crate) fn kill(mut self, journal: &mut Journal) {
        self.child.kill().unwrap();
        for line in self.lines.map_while(Result::ok) {
            // The last one may be a part of a line.
            let words = line.split_whitespace().count();
            if words >= 3 && !(line.starts_with("appended") && words < 4) {
                journal.line(&line);
            }
        }
        self.child.wait().unwrap();
    }
}

impl Journal {
    /// Holds what is there against what the children said. `durable`: all that they
    /// appended is there; otherwise what they have read, and those after it may be
    /// gone from some place on, if their stream is over.
    pub(crate) fn check(&mut self, spool: &Spool, durable: bool) {
        let records = peek_all(spool).unwrap();
        let there: Vec<(usize, u64)> = records
            .iter()
            .map(|record| {
                let (stream, sequence) = key(record);
                (self.stream(stream), sequence)
            })
            .collect();
        assert!(there.is_sorted_by(|a, b| a < b));
        if let Some(oldest) = there.first() {
            assert!(*oldest > self.acked, "an acknowledgement is undone");
        }
        let mut gone = Vec::new();
        for (stream, sequence, len) in &self.appended {
            let place = (*stream, *sequence);
            match there.binary_search(&place) {
                Ok(found) => {
                    let bytes = content(self.streams[*stream], *sequence, *len);
                    assert_eq!(records[found].bytes(), bytes);
                }
                Err(_) if place <= self.acking => {}
                Err(_) => gone.push(place),
            }
        }
        assert!(!durable || gone.is_empty(), "{gone:?} are lost");
        for (stream, sequence) in &gone {
            assert_ne!(self.streams[*stream], spool.stream(), "used again");
            let behind = |there: &&(usize, u64)| there.0 == *stream && there.1 > *sequence;
            assert!(!there.iter().any(|place| behind(&place)), "not the end");
        }
        self.appended.retain(|(stream, sequence, _)| {
            let place = (*stream, *sequence);
            place > self.acked && !gone.contains(&place)
        });
        assert!(spool.losses().unwrap().is_empty());
        assert!(spool.verify().unwrap().damage.is_empty());
    }

    /// That something was done.
    pub(crate) fn check_end(&self, policy: u64) {
        assert!(self.acked.1 > 0);
        if policy == 0 {
            let streams = self.streams.len();
            assert_eq!(streams, 1, "each append was durable: one stream");
        } else {
            assert!(self.streams.len() > 1);
        }
    }
}

#[test]
fn killed_again_and_again() {
    let rounds = 12 * effort();
    for policy in 0..2 {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::default();
        for round in 0..rounds {
            let seed = 2 * round + policy;
            Worker::start(directory.path(), seed, &mut journal).kill(&mut journal);
            let spool = Spool::open(directory.path(), options(policy)).unwrap();
            // A kill takes nothing that was written: not within a window either.
            journal.check(&spool, true);
        }
        journal.check_end(policy);
    }
    tell(&format!("killed {} times", 2 * rounds));
}
