//! A reader and a writer made from `docs/spool-format.md` alone, with nothing
//! of the crate: what it writes they read, and what they write it reads.

use zk_spool::{End, Error, Predecessor, Reason, Spool, StreamId, storage::FaultStorage};

use crate::common::{append, append_batch, copy, drain, open, peek_all, small};

/// CRC-32C, bit by bit.
fn crc32c(parts: &[&[u8]]) -> u32 {
    let mut crc = u32::MAX;
    for byte in parts.iter().flat_map(|part| part.iter()) {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().unwrap()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(number(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(number(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(number(bytes, at))
}

struct Frame {
    offset: u64,
    kind: u16,
    first: u64,
    synced: u64,
    records: Vec<Vec<u8>>,
    body: Vec<u8>,
}

fn read_segment(number_in_name: u64, file: &[u8]) -> ([u8; 16], u64, Vec<Frame>) {
    let header = &file[..512];
    assert_eq!(header, &file[512..1024], "two copies");
    assert_eq!(&header[..8], b"zk-spseg");
    assert_eq!(u32_at(header, 8), 1);
    assert_eq!(u32_at(header, 12), crc32c(&[&header[..12], &header[16..]]));
    assert_eq!(u64_at(header, 16), number_in_name);
    let stream: [u8; 16] = number(header, 24);
    let first = u64_at(header, 40);
    assert_eq!(header[48..], [0; 512 - 48], "no predecessor");

    let mut frames = Vec::new();
    let mut at = 1024;
    while at < file.len() {
        let frame = &file[at..];
        assert_eq!(frame[..4], [0xF5, 0x5A, 0x4B, 0x1E]);
        let body_len = u32_at(frame, 8) as usize;
        let frame = &frame[..32 + body_len];
        let place = (at as u64).to_be_bytes();
        let crc = crc32c(&[&number_in_name.to_be_bytes(), &stream, &place, &frame[8..]]);
        assert_eq!(u32_at(frame, 4), crc);
        let kind = u16_at(frame, 12);
        let mut records = Vec::new();
        let mut body = &frame[32..];
        for _ in 0..u16_at(frame, 14) {
            let (record, rest) = body[4..].split_at(u32_at(body, 0) as usize);
            records.push(record.to_vec());
            body = rest;
        }
        if kind == 1 {
            assert!(body.is_empty() && !records.is_empty());
        }
        frames.push(Frame {
            offset: at as u64,
            kind,
            first: u64_at(frame, 16),
            synced: u64_at(frame, 24),
            records,
            body: body.to_vec(),
        });
        at += frame.len();
    }
    (stream, first, frames)
}

#[test]
fn what_is_written_is_as_documented() {
    let storage = FaultStorage::new();
    let spool = open(&storage, &small()).unwrap();
    append_batch(&spool, &[300; 3]).unwrap();
    append(&spool, 200).unwrap();
    append(&spool, 10).unwrap();
    let records = peek_all(&spool).unwrap();
    spool.ack(records[0].position()).unwrap();
    spool.reject(records[1].position()).unwrap();
    let loss = spool.losses().unwrap()[0];
    let stream = spool.stream();
    spool.close().unwrap();
    let files = storage.files();

    let marker = &files["zk-spool"];
    assert_eq!(marker.len(), 16);
    assert_eq!(&marker[..8], b"zk-spool");
    assert_eq!(u32_at(marker, 8), 1);
    assert_eq!(u32_at(marker, 12), crc32c(&[&marker[..12]]));

    let (in_one, first, one) = read_segment(1, &files["00000000000000000001.seg"]);
    let (in_two, second, two) = read_segment(2, &files["00000000000000000002.seg"]);
    assert_eq!((in_one, in_two), (stream.0, stream.0));
    assert_eq!((first, second), (1, 4));
    let kinds = |frames: &[Frame]| frames.iter().map(|f| f.kind).collect::<Vec<_>>();
    assert_eq!(kinds(&one), [2, 1, 4]);
    assert_eq!(kinds(&two), [2, 1, 1, 3]);
    assert_eq!(one[0].body, [0; 8]);
    let kept: Vec<&Vec<u8>> = one.iter().chain(&two).flat_map(|f| &f.records).collect();
    assert!(
        records
            .iter()
            .map(zk_spool::Record::bytes)
            .eq(kept.iter().map(|r| r.as_slice()))
    );
    let synced: Vec<u64> = one.iter().chain(&two).map(|f| f.synced).collect();
    assert_eq!(synced, [0, 0, 3, 3, 3, 4, 5]);
    let firsts: Vec<u64> = one.iter().chain(&two).map(|f| f.first).collect();
    assert_eq!(firsts, [1, 1, 4, 4, 4, 5, 6]);

    let sealed = &one[2];
    assert_eq!(sealed.body.len(), 48);
    assert_eq!(sealed.body[..16], stream.0);
    assert_eq!(u64_at(&sealed.body, 16), 1);
    assert_eq!(u64_at(&sealed.body, 24), 3);
    assert_eq!(u64_at(&sealed.body, 32), sealed.offset);
    assert_eq!(sealed.body[40..], [0; 8]);

    let state = &files["state"];
    assert_eq!(state.len(), 32 << 10);
    let newest = state
        .chunks(16 << 10)
        .max_by_key(|slot| u64_at(slot, 16))
        .unwrap();
    assert_eq!(&newest[..8], b"zk-spsta");
    assert_eq!(u32_at(newest, 8), 1);
    let used = 96 + 72;
    assert_eq!(
        u32_at(newest, 12),
        crc32c(&[&newest[..12], &newest[16..used]])
    );
    assert_eq!(u64_at(newest, 24), 1, "the cursor's segment");
    assert_eq!(newest[32..48], stream.0);
    assert_eq!(u64_at(newest, 48), 2, "delivered up to here");
    assert_eq!(
        u64_at(newest, 56),
        one[1].offset,
        "the frame is not done yet"
    );
    assert_eq!((u64_at(newest, 64), u64_at(newest, 72)), (2, 5), "durable");
    assert_eq!(u64_at(newest, 80), 1, "the last id of a loss");
    assert_eq!(u32_at(newest, 88), 1);
    let entry = &newest[96..used];
    assert_eq!(u64_at(entry, 0), loss.id);
    assert_eq!(entry[8..16], [3, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(entry[16..32], stream.0);
    assert_eq!(
        (u64_at(entry, 32), u64_at(entry, 40), u64_at(entry, 48)),
        (2, 2, 1)
    );
    assert_eq!(
        (u64_at(entry, 56), u64_at(entry, 64)),
        (loss.since_ms, loss.until_ms)
    );

    let rejected = format!("rejected/{:020}-{:020}-{stream}.rec", 1, 2);
    assert_eq!(files[&rejected], records[1].bytes());
}

/// Writes a segment from the document.
struct Writer {
    number: u64,
    stream: [u8; 16],
    file: Vec<u8>,
}

impl Writer {
    fn new(
        number: u64,
        stream: [u8; 16],
        first: u64,
        predecessor: Option<([u8; 16], u64, u8)>,
    ) -> Self {
        let mut header = vec![0; 512];
        header[..8].copy_from_slice(b"zk-spseg");
        header[8..12].copy_from_slice(&1_u32.to_be_bytes());
        header[16..24].copy_from_slice(&number.to_be_bytes());
        header[24..40].copy_from_slice(&stream);
        header[40..48].copy_from_slice(&first.to_be_bytes());
        if let Some((stream, last, end)) = predecessor {
            header[48..64].copy_from_slice(&stream);
            header[64..72].copy_from_slice(&last.to_be_bytes());
            header[72] = end;
        }
        let crc = crc32c(&[&header[..12], &header[16..]]);
        header[12..16].copy_from_slice(&crc.to_be_bytes());
        let file = header.repeat(2);
        Self {
            number,
            stream,
            file,
        }
    }

    fn frame(&mut self, kind: u16, count: u16, first: u64, synced: u64, body: &[u8]) {
        let mut frame = vec![0xF5, 0x5A, 0x4B, 0x1E, 0, 0, 0, 0];
        frame.extend((body.len() as u32).to_be_bytes());
        frame.extend(kind.to_be_bytes());
        frame.extend(count.to_be_bytes());
        frame.extend(first.to_be_bytes());
        frame.extend(synced.to_be_bytes());
        frame.extend(body);
        let place = (self.file.len() as u64).to_be_bytes();
        let crc = crc32c(&[
            &self.number.to_be_bytes(),
            &self.stream,
            &place,
            &frame[8..],
        ]);
        frame[4..8].copy_from_slice(&crc.to_be_bytes());
        self.file.extend(frame);
    }

    fn records(&mut self, first: u64, records: &[&[u8]]) {
        let mut body = Vec::new();
        for record in records {
            body.extend((record.len() as u32).to_be_bytes());
            body.extend(*record);
        }
        self.frame(1, records.len() as u16, first, first - 1, &body);
    }

    fn seal(&mut self, first: u64, last: u64, end: u64, stream_end: u8) {
        let mut body = self.stream.to_vec();
        body.extend(first.to_be_bytes());
        body.extend(last.to_be_bytes());
        body.extend(end.to_be_bytes());
        body.extend([stream_end, 0, 0, 0, 0, 0, 0, 0]);
        self.frame(4, 0, last.wrapping_add(1), last, &body);
    }

    fn put(self, storage: &FaultStorage) {
        storage.put(&format!("{:020}.seg", self.number), self.file);
    }
}

/// A spool that nothing was appended to.
fn empty() -> FaultStorage {
    let storage = FaultStorage::new();
    open(&storage, &small()).unwrap().close().unwrap();
    assert_eq!(storage.files().len(), 2);
    storage
}

fn opened(records: &[(u64, &[u8])], spool: &Spool, stream: [u8; 16]) {
    let drained = drain(spool);
    let found: Vec<_> = drained.iter().map(|r| (r.sequence(), r.bytes())).collect();
    assert_eq!(found, records);
    assert!(
        drained
            .iter()
            .all(|record| record.stream() == StreamId(stream))
    );
}

#[test]
fn what_is_documented_is_read() {
    let storage = empty();
    let mut one = Writer::new(1, [1; 16], 5, None);
    one.frame(2, 0, 5, 4, &[0; 8]);
    one.records(5, &[b"five", b"six"]);
    let end = one.file.len() as u64;
    one.file.extend(b"a torn write, cut off by a recovery");
    one.seal(5, 6, end, 1);
    one.put(&storage);
    let mut two = Writer::new(2, [2; 16], 1, Some(([1; 16], 6, 1)));
    two.frame(2, 0, 1, 0, &[0; 8]);
    two.records(1, &[b"one", b"", b"three"]);
    two.frame(3, 0, 4, 3, &[]);
    two.put(&storage);

    let spool = open(&storage, &small()).unwrap();
    assert_eq!(spool.stream(), StreamId([2; 16]));
    let before = spool.predecessor().unwrap();
    assert_eq!(
        (before.stream, before.last_sequence),
        (StreamId([1; 16]), 6)
    );
    assert_eq!(before.end, End::Cut);
    assert_eq!(spool.verify().unwrap().damage, []);
    let five = spool.peek(2, 100).unwrap();
    spool.ack(five[1].position()).unwrap();
    opened(&[(1, b"one"), (2, b""), (3, b"three")], &spool, [2; 16]);
    assert!(spool.losses().unwrap().is_empty());
    assert_eq!(append(&spool, 1).unwrap(), 4);
}

#[test]
fn the_rules_of_recovery_are_as_documented() {
    // A bad frame that a later one knows to have been durable is damage; one
    // beyond that is cut off, with all behind it.
    for (synced, sequences, lost) in [
        (4, vec![1, 2, 5], Some((3, 4))),
        (3, vec![1, 2], Some((3, 3))),
        (2, vec![1, 2], None),
    ] {
        let storage = empty();
        let mut log = Writer::new(1, [9; 16], 1, None);
        log.frame(2, 0, 1, 0, &[1, 0, 0, 0, 0, 0, 0, 0]);
        log.records(1, &[b"one", b"two"]);
        let bad = log.file.len();
        log.records(3, &[b"three", b"four"]);
        log.file[bad + 40] ^= 4;
        log.frame(1, 1, 5, synced, b"\0\0\0\x04five");
        log.put(&storage);
        let spool = open(&storage, &small()).unwrap();
        let losses = spool.losses().unwrap();
        let named = losses.first().map(|loss| (loss.first, loss.last));
        assert_eq!(named, lost);
        assert!(losses.iter().all(|loss| loss.reason == Reason::Damaged));
        let found: Vec<u64> = drain(&spool)
            .iter()
            .map(zk_spool::Record::sequence)
            .collect();
        assert_eq!(found, sequences);
        let before = spool.predecessor().unwrap();
        let last = sequences[sequences.len() - 1].max(lost.map_or(0, |(_, last)| last));
        assert_eq!(
            (before.stream, before.last_sequence),
            (StreamId([9; 16]), last)
        );
        assert_eq!(append(&spool, 1).unwrap(), 1);
    }
}

/// Numbers that nobody ever gave out, under checksums that are right.
#[test]
fn absurd_numbers_do_no_harm() {
    const ABSURD: [u64; 4] = [u64::MAX, u64::MAX - 1, u64::MAX - 2, 1 << 63];
    let use_it = |storage: &FaultStorage| {
        let spool = open(storage, &small()).unwrap();
        spool.verify().unwrap();
        drain(&spool);
        spool.stats().unwrap();
        let losses = spool.losses().unwrap();
        if let Some(last) = losses.last() {
            spool.confirm(last.id).unwrap();
        }
        if let Ok(sequence) = append(&spool, 10) {
            let records = drain(&spool);
            assert_eq!(records[0].sequence(), sequence);
        }
    };
    for a in ABSURD {
        for b in [1, 4, a] {
            for newest in [true, false] {
                let storage = empty();
                let mut one = Writer::new(1, [1; 16], b, Some(([2; 16], a, 2)));
                one.frame(2, 0, b, b - 1, &[0; 8]);
                one.records(b, &[b"one", b"two"]);
                one.frame(1, 1, a, b - 1, b"\0\0\0\x01a");
                one.frame(1, 1, a, a - 1, b"\0\0\0\x01a");
                let end = one.file.len() as u64;
                if !newest {
                    one.seal(b, a, end, 0);
                }
                one.put(&storage);
                let mut two = Writer::new(2, [1; 16], a, None);
                two.frame(2, 0, a, a - 1, &[0; 8]);
                if !newest {
                    two.put(&storage);
                }
                use_it(&storage);
            }
        }

        // In each field of both slots of the state file.
        for at in [16, 24, 48, 56, 64, 72, 80, 96, 128, 136, 144, 152] {
            let storage = FaultStorage::new();
            let spool = open(&storage, &small()).unwrap();
            append_batch(&spool, &[300; 9]).unwrap();
            let first = spool.peek(1, 0).unwrap().remove(0);
            spool.reject(first.position()).unwrap();
            spool.close().unwrap();
            let mut state = storage.files()["state"].clone();
            for slot in state.chunks_mut(16 << 10) {
                slot[at..at + 8].copy_from_slice(&a.to_be_bytes());
                let crc = crc32c(&[&slot[..12], &slot[16..96 + 72]]);
                slot[12..16].copy_from_slice(&crc.to_be_bytes());
            }
            storage.put("state", state);
            use_it(&storage);
        }
    }
    let storage = empty();
    storage.put(&format!("{}.seg", u64::MAX), vec![0; 2000]);
    use_it(&storage);
}

/// A sealed frame that is not at the end of its file is held to the same rules.
#[test]
fn an_absurd_sealed_frame_in_the_middle_does_no_harm() {
    let absurd = [u64::MAX, u64::MAX - 1, 1 << 62];
    let bodies = absurd.into_iter().flat_map(|a| {
        [
            (0, 2, 1100),
            (0, a, 1100),
            (1, a, 1100),
            (a, a, 1100),
            (9, 2, 1100),
            (1, 2, a),
        ]
    });
    for (first, last, end) in bodies {
        let storage = empty();
        let mut log = Writer::new(1, [1; 16], 1, None);
        log.frame(2, 0, 1, 0, &[0; 8]);
        log.records(1, &[b"one", b"two"]);
        log.seal(first, last, end, 0);
        log.file.extend([7; 100]);
        log.put(&storage);
        let spool = open(&storage, &small()).unwrap();
        spool.verify().unwrap();
        assert_eq!(drain(&spool).len(), 2);
        append(&spool, 10).unwrap();
        spool.close().unwrap();
        let spool = open(&storage, &small()).unwrap();
        assert_eq!(drain(&spool).len(), 1);
    }
}

/// Frames whose numbers nobody can have given out are damage like any other.
#[test]
fn a_frame_with_absurd_numbers_is_none() {
    let storage = empty();
    let mut log = Writer::new(1, [1; 16], 1, None);
    log.frame(2, 0, 1, 0, &[0; 8]);
    log.records(1, &[b"one", b"two"]);
    log.frame(1, 1, 1 << 62, (1 << 62) - 1, b"\0\0\0\x01a");
    log.put(&storage);
    let spool = open(&storage, &small()).unwrap();
    opened(&[(1, b"one"), (2, b"two")], &spool, [1; 16]);
    assert_eq!(spool.predecessor().unwrap().last_sequence, 2);
}

/// However few successors a segment can have, what is appended is never put where
/// the next opening does not look, and what was lost is not forgotten.
#[test]
fn segment_numbers_at_their_end() {
    for last in (1..5_u64).flat_map(|n| [(1 << 62) - n, (1 << 61) - n]) {
        let storage = empty();
        storage.put(&format!("{last:020}.seg"), vec![0; 2000]);
        let before = storage.files();
        match open(&storage, &small()) {
            Err(Error::NotASpool { .. }) => assert_eq!(storage.files(), before),
            Err(error) => panic!("{error}"),
            Ok(spool) => {
                append(&spool, 10).unwrap();
                drop(spool);
                match open(&storage, &small()) {
                    Ok(spool) => assert_eq!(drain(&spool).len(), 1, "{last}"),
                    Err(error) => assert!(matches!(error, Error::NotASpool { .. })),
                }
                rejected_behind(last);
            }
        }
    }
    // The state file can say so, too.
    for last in (1..5_u64).flat_map(|n| [(1 << 62) - n, (1 << 61) - n]) {
        for at in [24, 64] {
            let storage = empty();
            let mut state = storage.files()["state"].clone();
            for slot in state.chunks_mut(16 << 10) {
                slot[at..at + 8].copy_from_slice(&last.to_be_bytes());
                slot[48..56].copy_from_slice(&1_u64.to_be_bytes());
                let crc = crc32c(&[&slot[..12], &slot[16..96]]);
                slot[12..16].copy_from_slice(&crc.to_be_bytes());
            }
            storage.put("state", state);
            let spool = open(&storage, &small()).unwrap();
            append(&spool, 10).unwrap();
            drop(spool);
            match open(&storage, &small()) {
                Ok(spool) => assert_eq!(drain(&spool).len(), 1, "{last}"),
                Err(error) => assert!(matches!(error, Error::NotASpool { .. })),
            }
        }
    }
}

/// A loss in the segment behind this one, when the disk fails in the next.
fn rejected_behind(last: u64) {
    for operation in 1..16 {
        let storage = empty();
        storage.put(&format!("{last:020}.seg"), Vec::new());
        let spool = open(&storage, &small()).unwrap();
        append(&spool, 3000).unwrap();
        let record = peek_all(&spool).unwrap().remove(0);
        spool.reject(record.position()).unwrap();
        storage.fail_at(storage.operations() + operation);
        let _ = append(&spool, 10);
        drop(spool);
        storage.restart();
        match open(&storage, &small()) {
            Ok(spool) => assert!(!spool.losses().unwrap().is_empty(), "{last}"),
            Err(error) => assert!(matches!(error, Error::NotASpool { .. })),
        }
    }
}

/// A segment ends where the next one begins, in the midst of a frame if need be:
/// what is handed out can be acknowledged, and each number is handed out once.
#[test]
fn a_frame_that_reaches_into_the_next_segment() {
    let storage = empty();
    let mut one = Writer::new(1, [1; 16], 1, None);
    one.frame(2, 0, 1, 0, &[0; 8]);
    one.records(1, &[b"one", b"two", b"three too early"]);
    one.put(&storage);
    let mut two = Writer::new(2, [1; 16], 3, None);
    two.frame(2, 0, 3, 2, &[0; 8]);
    two.records(3, &[b"three"]);
    two.put(&storage);
    let spool = open(&storage, &small()).unwrap();
    opened(&[(1, b"one"), (2, b"two"), (3, b"three")], &spool, [1; 16]);
    assert_eq!(append(&spool, 1).unwrap(), 4);
}

/// The first segments are gone, and with them what was never delivered: that is said
/// once, also if the one behind them is empty and makes way for another stream.
#[test]
fn a_lost_beginning_is_named_once() {
    let storage = empty();
    Writer::new(3, [2; 16], 4, None).put(&storage);
    let spool = open(&storage, &small()).unwrap();
    let losses = spool.losses().unwrap();
    assert_eq!(losses.len(), 1, "{losses:?}");
    assert_eq!(losses[0].stream, StreamId([2; 16]));
    assert_eq!((losses[0].first, losses[0].last), (1, 3));
    spool.confirm(losses[0].id).unwrap();
    assert_eq!(append(&spool, 1).unwrap(), 1);
    drop(spool);
    let spool = open(&storage, &small()).unwrap();
    assert_eq!(spool.losses().unwrap(), []);
    assert_eq!(drain(&spool).len(), 1);
}

/// Segments are gone with the end of one stream and the beginning of the next, between
/// two others or before all: both are named.
#[test]
fn the_lost_turn_of_a_stream_is_named() {
    for (first_is_there, lost) in [
        (true, vec![([1; 16], 3, 5), ([2; 16], 1, 3)]),
        (false, vec![([1; 16], 1, 5), ([2; 16], 1, 3)]),
    ] {
        let storage = empty();
        let mut one = Writer::new(1, [1; 16], 1, None);
        one.frame(2, 0, 1, 0, &[0; 8]);
        one.records(1, &[b"one", b"two"]);
        let end = one.file.len() as u64;
        one.seal(1, 2, end, 0);
        if first_is_there {
            one.put(&storage);
        }
        let mut four = Writer::new(4, [2; 16], 4, Some(([1; 16], 5, 3)));
        four.frame(2, 0, 4, 3, &[0; 8]);
        four.records(4, &[b"four"]);
        four.put(&storage);
        let spool = open(&storage, &small()).unwrap();
        let losses = spool.losses().unwrap();
        let named: Vec<_> = losses
            .iter()
            .map(|l| (l.stream.0, l.first, l.last))
            .collect();
        assert_eq!(named, lost);
        assert!(losses.iter().all(|loss| loss.reason == Reason::Damaged));
        assert_eq!(drain(&spool).len(), if first_is_there { 3 } else { 1 });
        assert_eq!(spool.losses().unwrap(), losses);
    }
}

/// A segment's frames are gone, and the header of the next, with which a stream begins,
/// or all of it: where the one before ended is in the other headers of that stream.
#[test]
fn a_predecessor_is_in_every_header_of_its_stream() {
    let cases = [
        (1024, 3, vec![([1; 16], 1, 2)]),
        (usize::MAX, 2, vec![([1; 16], 1, 2), ([2; 16], 1, 1)]),
    ];
    for (gone, there, lost) in cases {
        let storage = empty();
        let mut one = Writer::new(1, [1; 16], 1, None);
        one.frame(2, 0, 1, 0, &[0; 8]);
        one.file.extend([0; 100]);
        one.put(&storage);
        for number in [2, 3, 4] {
            let mut segment = Writer::new(number, [2; 16], number - 1, Some(([1; 16], 2, 3)));
            segment.frame(2, 0, number - 1, number - 2, &[0; 8]);
            segment.records(number - 1, &[b"there"]);
            let end = segment.file.len() as u64;
            segment.seal(number - 1, number - 1, end, 0);
            if number == 2 {
                let gone = gone.min(segment.file.len());
                segment.file[..gone].fill(0);
            }
            segment.put(&storage);
        }
        let spool = open(&storage, &small()).unwrap();
        assert_eq!(drain(&spool).len(), there);
        let losses = spool.losses().unwrap();
        let mut named: Vec<_> = losses
            .iter()
            .map(|l| (l.stream.0, l.first, l.last))
            .collect();
        named.sort_unstable();
        assert_eq!(named, lost);
    }
}

/// A segment of which nothing was delivered is gone, also the one that the cursor is in.
#[test]
fn a_lost_segment_at_the_cursor_is_named() {
    let storage = empty();
    let mut two = Writer::new(2, [2; 16], 1, Some(([1; 16], 2, 3)));
    two.frame(2, 0, 1, 0, &[0; 8]);
    two.records(1, &[b"one", b"two"]);
    let end = two.file.len() as u64;
    two.seal(1, 2, end, 3);
    two.put(&storage);
    let mut three = Writer::new(3, [3; 16], 1, Some(([2; 16], 2, 3)));
    three.frame(2, 0, 1, 0, &[0; 8]);
    three.records(1, &[b"one"]);
    three.put(&storage);
    storage.put("state", Vec::new());
    drop(open(&storage, &small()).unwrap());
    let mut files = storage.files();
    files.remove(&format!("{:020}.seg", 2));
    let storage = FaultStorage::new();
    for (name, bytes) in files {
        storage.put(&name, bytes);
    }
    let spool = open(&storage, &small()).unwrap();
    let losses = spool.losses().unwrap();
    let named: Vec<_> = losses.iter().filter(|loss| loss.records > 0).collect();
    assert_eq!(named.len(), 1, "{losses:?}");
    let loss = named[0];
    assert_eq!((loss.stream.0, loss.first, loss.last), ([2; 16], 1, 2));
}

/// That what was behind a place can't be known is said although the record at that
/// place is known to be lost.
#[test]
fn a_doubt_behind_a_loss_is_named() {
    let storage = empty();
    let mut one = Writer::new(1, [1; 16], 1, None);
    one.frame(2, 0, 1, 0, &[0; 8]);
    one.records(1, &[b"one", b"two"]);
    let end = one.file.len() as u64;
    one.seal(1, 2, end, 0);
    one.put(&storage);
    let mut three = Writer::new(3, [2; 16], 1, Some(([1; 16], 4, 3)));
    three.frame(2, 0, 1, 0, &[0; 8]);
    three.records(1, &[b"one"]);
    three.put(&storage);
    let spool = open(&storage, &small()).unwrap();
    let losses = spool.losses().unwrap();
    assert_eq!(losses.len(), 1, "{losses:?}");
    assert_eq!((losses[0].first, losses[0].last), (3, 4));
    drop(spool);
    storage.put(&format!("{:020}.seg", 3), vec![0; 2000]);
    for _ in 0..2 {
        let spool = open(&storage, &small()).unwrap();
        let losses = spool.losses().unwrap();
        assert_eq!(losses.len(), 2, "{losses:?}");
        assert_eq!((losses[1].first, losses[1].records), (3, 0));
    }
}

/// The newest segment was forged, with checksums that are right, and says of its stream
/// that it went less far than it did. As long as a frame, a slot, another segment or a
/// loss knows better, no number is given out again.
#[test]
fn a_newest_segment_that_says_too_little() {
    const NEWEST: u64 = 3;
    for drained in [false, true] {
        for frames in 0..=2_u64 {
            for (first, last) in [(5, 4), (5, 5), (1, 0), (1, 1), (1, 5), (5, 6)] {
                for sealed in [true, false] {
                    for lost in [false, true] {
                        let storage = FaultStorage::new();
                        let spool = open(&storage, &small()).unwrap();
                        let stream = spool.stream();
                        for _ in 0..3 {
                            append_batch(&spool, &[600; 2]).unwrap();
                        }
                        assert_eq!(spool.stats().unwrap().segments as u64, NEWEST);
                        if drained {
                            drain(&spool);
                        }
                        if lost && !drained {
                            while let Some(oldest) = spool.peek(1, 0).unwrap().pop() {
                                spool.reject(oldest.position()).unwrap();
                            }
                        }
                        spool.close().unwrap();
                        let mut newest = Writer::new(NEWEST, stream.0, first, None);
                        newest.frame(2, 0, first, first - 1, &[0; 8]);
                        for sequence in 5..5 + frames {
                            newest.records(sequence, &[b"again"]);
                        }
                        if sealed {
                            let end = newest.file.len() as u64;
                            newest.seal(first, last, end, 0);
                        }
                        newest.put(&storage);
                        let what = format!("{drained} {frames} {first}..{last} {sealed} {lost}");
                        let mut spool = open(&storage, &small()).unwrap();
                        if !drained {
                            drain(&spool);
                            drop(spool);
                            spool = open(&storage, &small()).unwrap();
                        }
                        let sequence = append(&spool, 10).unwrap();
                        assert!(spool.stream() != stream || sequence > 6, "{what}");
                    }
                }
            }
        }
    }
}

/// The same without the state file: the segments before it are there.
#[test]
fn a_newest_segment_that_begins_too_early() {
    for sealed in [false, true] {
        for first in 1..=4 {
            let storage = empty();
            let mut one = Writer::new(1, [1; 16], 1, None);
            one.frame(2, 0, 1, 0, &[0; 8]);
            one.records(1, &[b"one", b"two", b"three", b"four"]);
            let end = one.file.len() as u64;
            one.seal(1, 4, end, 0);
            one.put(&storage);
            let mut two = Writer::new(2, [1; 16], first, None);
            two.frame(2, 0, first, first - 1, &[0; 8]);
            if sealed {
                let end = two.file.len() as u64;
                two.seal(first, first - 1, end, 0);
            }
            two.put(&storage);
            let spool = open(&storage, &small()).unwrap();
            let before = spool.predecessor().unwrap();
            assert_eq!((before.last_sequence, before.end), (4, End::Damaged));
            let doubts = |spool: &Spool| {
                let losses = spool.losses().unwrap();
                let mut doubts = losses.iter().filter(|loss| loss.records == 0);
                doubts.any(|loss| (loss.stream, loss.first) == (StreamId([1; 16]), 5))
            };
            assert!(doubts(&spool));
            assert_eq!(drain(&spool).len(), 4);
            drop(spool);
            // The segment before it is gone by now, and the cursor is behind it.
            let mut spool = open(&storage, &small()).unwrap();
            for _ in 0..2 {
                assert_ne!(spool.stream(), StreamId([1; 16]));
                let newest = spool.losses().unwrap().last().map_or(0, |loss| loss.id);
                spool.confirm(newest).unwrap();
                drop(spool);
                spool = open(&storage, &small()).unwrap();
            }
            assert_eq!(append(&spool, 1).unwrap(), 1);
        }
    }
}

/// The same again: the frames in it are there.
#[test]
fn a_sealed_frame_is_held_to_the_frames_before_it() {
    for (last, end) in [(0, 0), (1, 0), (2, 1), (3, 1)] {
        let storage = empty();
        let mut one = Writer::new(1, [1; 16], 1, None);
        one.frame(2, 0, 1, 0, &[0; 8]);
        for sequence in 1..=3 {
            one.records(sequence, &[b"there"]);
        }
        let end = one.file.len() as u64 - end;
        one.seal(1, last, end, 0);
        one.put(&storage);
        let spool = open(&storage, &small()).unwrap();
        let before = spool.predecessor().unwrap();
        assert_eq!((before.last_sequence, before.end), (3, End::Damaged));
        opened(
            &[(1, b"there"), (2, b"there"), (3, b"there")],
            &spool,
            [1; 16],
        );
        assert_eq!(append(&spool, 1).unwrap(), 1);
    }
}

/// Marks with nothing behind them, each claiming a megabyte: looking for the way
/// behind them takes a time that the file's length bounds. What stands behind
/// them is found.
#[test]
fn a_file_full_of_marks_is_read_a_few_times_only() {
    const LEN: u64 = 4 << 20;
    let storage = empty();
    let mut log = Writer::new(1, [1; 16], 1, None);
    log.frame(2, 0, 1, 0, &[0; 8]);
    log.records(1, &[b"one", b"two"]);
    let end = log.file.len() as u64 + LEN;
    let mut left = LEN;
    while left >= 32 {
        let mut header = vec![0xF5, 0x5A, 0x4B, 0x1E, 0, 0, 0, 0];
        header.extend((left as u32 - 32).min(1 << 20).to_be_bytes());
        header.extend([0, 1, 0, 1]);
        header.extend(3_u64.to_be_bytes());
        header.extend(2_u64.to_be_bytes());
        log.file.extend(header);
        left -= 32;
    }
    assert_eq!(log.file.len() as u64, end);
    log.frame(1, 1, 4, 3, b"\0\0\0\x04four");
    log.put(&storage);
    let before = storage.bytes_read();
    let spool = open(&storage, &small()).unwrap();
    assert_eq!(drain(&spool).len(), 3);
    let read = storage.bytes_read() - before;
    assert!(read < 100 * LEN, "{read} bytes");
    let losses = spool.losses().unwrap();
    assert_eq!((losses[0].first, losses[0].last), (3, 3));
}

/// A stream does not go on behind bytes that no append has acknowledged.
#[test]
fn a_torn_end_ends_the_stream() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let two = Spool::open(path("b"), small()).unwrap();
    let stream = two.stream();
    append_batch(&two, &[50; 30]).unwrap();
    assert_eq!(append(&two, 50).unwrap(), 31);
    copy(&path("b"), &path("c"));
    drop(two);
    let files = path("c").read_dir().unwrap();
    let segments = files.map(|entry| entry.unwrap().path());
    let newest = segments.filter(|path| path.extension().is_some_and(|e| e == "seg"));
    let newest = newest.max().unwrap();
    let mut bytes = std::fs::read(&newest).unwrap();
    bytes.pop();
    std::fs::write(&newest, bytes).unwrap();
    let three = Spool::open(path("c"), small()).unwrap();
    let before = Predecessor {
        stream,
        last_sequence: 30,
        end: End::Cut,
    };
    assert_eq!(three.predecessor(), Some(before));
    assert_ne!(three.stream(), stream);
    assert_eq!(append(&three, 50).unwrap(), 1);
    assert_eq!(drain(&three).len(), 31);
    assert!(three.losses().unwrap().is_empty());
}

#[test]
fn opening_and_draining_writes_no_segment() {
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::open(directory.path(), small()).unwrap();
    append_batch(&spool, &[50; 3]).unwrap();
    drop(spool);
    let segment = directory.path().join("00000000000000000001.seg");
    let before = std::fs::read(&segment).unwrap();
    let spool = Spool::open(directory.path(), small()).unwrap();
    assert_eq!(drain(&spool).len(), 3);
    spool.close().unwrap();
    assert_eq!(std::fs::read(&segment).unwrap(), before);
}
