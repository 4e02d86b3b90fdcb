//! The process is killed, again and again, while it appends and acknowledges.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use zk_spool::{Engine, Full, Options, Spool, StreamId, SyncPolicy};

use crate::common::{Random, append, append_batch, content, defaults, effort, key, peek_all};

const DIRECTORY: &str = "ZK_SPOOL_TEST_DIRECTORY";
const SEED: &str = "ZK_SPOOL_TEST_SEED";

fn options(seed: u64) -> Options {
    Options {
        cap: 1 << 20,
        segment_size: Some(4 << 10),
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
struct Journal {
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

fn run_and_kill(directory: &Path, seed: u64, journal: &mut Journal) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["kill::child", "--exact", "--nocapture"])
        .env(DIRECTORY, directory)
        .env(SEED, seed.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let patience = 20 + Random(seed).below(600);
    for _ in 0..patience {
        journal.line(&lines.next().expect("the child goes on").unwrap());
    }
    child.kill().unwrap();
    for line in lines.map_while(Result::ok) {
        // The last one may be a part of a line.
        let words = line.split_whitespace().count();
        if words >= 3 && !(line.starts_with("appended") && words < 4) {
            journal.line(&line);
        }
    }
    child.wait().unwrap();
}

#[test]
fn killed_again_and_again() {
    for policy in 0..2 {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::default();
        for round in 0..12 * effort() {
            run_and_kill(directory.path(), 2 * round + policy, &mut journal);
            let spool = Spool::open(directory.path(), options(policy)).unwrap();
            let records = peek_all(&spool).unwrap();
            let there: Vec<(usize, u64)> = records
                .iter()
                .map(|record| {
                    let (stream, sequence) = key(record);
                    (journal.stream(stream), sequence)
                })
                .collect();
            assert!(there.is_sorted_by(|a, b| a < b));
            if let Some(oldest) = there.first() {
                assert!(*oldest > journal.acked, "an acknowledgement is undone");
            }
            // A kill takes nothing that was written: to a file, not within a window
            // either.
            for (stream, sequence, len) in &journal.appended {
                let place = (*stream, *sequence);
                match there.binary_search(&place) {
                    Ok(found) => {
                        let bytes = content(journal.streams[*stream], *sequence, *len);
                        assert_eq!(records[found].bytes(), bytes);
                    }
                    Err(_) => assert!(place <= journal.acking, "{place:?} is lost"),
                }
            }
            journal
                .appended
                .retain(|(stream, sequence, _)| (*stream, *sequence) > journal.acked);
            assert!(spool.losses().unwrap().is_empty());
            assert!(spool.verify().unwrap().damage.is_empty());
        }
        assert!(journal.acked.1 > 0);
        if policy == 0 {
            assert_eq!(
                journal.streams.len(),
                1,
                "each append was durable: one stream"
            );
        } else {
            assert!(journal.streams.len() > 1);
        }
    }
}
