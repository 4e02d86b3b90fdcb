//! The least that a durable log has to do: what the spool is held against.

use std::fs::{self, File, OpenOptions};
use std::io::Result;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A frame with a checksum, one write and one fdatasync for a group, segments of
/// [`SEGMENT`](Self::SEGMENT) bytes that are unlinked when they are drained, and a
/// cursor in two slots. It recovers nothing.
#[derive(Debug)]
pub struct Bare {
    dir: PathBuf,
    file: File,
    number: u64,
    end: u64,
    buffer: Vec<u8>,
    cursor: File,
    acks: u64,
    reading: Option<(u64, File)>,
    offset: u64,
}

impl Bare {
    /// What it is called in rows.
    pub const NAME: &str = "a bare log with the same writes and syncs";

    /// Bytes of a segment, at most: what the spool has with a cap of 1 GiB.
    pub const SEGMENT: u64 = 4 << 20;

    /// An empty log in a new directory.
    ///
    /// # Errors
    /// Those of the file system, as for the other functions.
    pub fn create(dir: PathBuf) -> Result<Self> {
        fs::create_dir(&dir)?;
        let cursor = File::create(dir.join("cursor"))?;
        cursor.write_all_at(&[0; 1024], 0)?;
        cursor.sync_data()?;
        let file = segment(&dir, 0)?;
        Ok(Self {
            dir,
            file,
            number: 0,
            end: HEADER,
            buffer: Vec::new(),
            cursor,
            acks: 0,
            reading: None,
            offset: HEADER,
        })
    }

    /// Appends a group.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn append(&mut self, records: &[&[u8]]) -> Result<()> {
        let length: usize = records.iter().map(|record| 4 + record.len()).sum();
        if self.end + 32 + length as u64 > Self::SEGMENT {
            // the mark of a segment that is complete
            self.file.write_all_at(&[2; 80], self.end)?;
            self.file.sync_data()?;
            self.number += 1;
            self.file = segment(&self.dir, self.number)?;
            self.end = HEADER;
        }
        self.buffer.clear();
        self.buffer.resize(32, 0);
        self.buffer[..4].copy_from_slice(&(length as u32).to_be_bytes());
        for record in records {
            let length = record.len() as u32;
            self.buffer.extend_from_slice(&length.to_be_bytes());
            self.buffer.extend_from_slice(record);
        }
        let crc = crc32c::crc32c(&self.buffer[8..]);
        self.buffer[4..8].copy_from_slice(&crc.to_be_bytes());
        self.file.write_all_at(&self.buffer, self.end)?;
        self.file.sync_data()?;
        self.end += self.buffer.len() as u64;
        Ok(())
    }

    /// Reads the oldest group, of `count` records of `size` bytes, and marks it as
    /// delivered.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn drain(&mut self, count: usize, size: usize) -> Result<Vec<Vec<u8>>> {
        let length = 32 + count * (4 + size);
        let (mut number, mut file) = match self.reading.take() {
            Some(reading) => reading,
            None => (0, open(&self.dir, 0)?),
        };
        if self.is_done(number, length) {
            // it was drained while it was the newest one
            (number, file) = self.next(number)?;
        }
        self.buffer.resize(length, 0);
        file.read_exact_at(&mut self.buffer, self.offset)?;
        let crc = crc32c::crc32c(&self.buffer[8..]);
        if self.buffer[4..8] != crc.to_be_bytes() {
            return Err(std::io::Error::other("a frame that does not check"));
        }
        let mut records = Vec::with_capacity(count);
        let mut rest = &self.buffer[32..];
        while let Some((length, bytes)) = rest.split_first_chunk() {
            let (record, next) = bytes.split_at(u32::from_be_bytes(*length) as usize);
            records.push(record.to_vec());
            rest = next;
        }
        self.offset += self.buffer.len() as u64;

        let mut slot = [0; 128];
        slot[..8].copy_from_slice(&self.offset.to_be_bytes());
        let crc = crc32c::crc32c(&slot[..124]);
        slot[124..].copy_from_slice(&crc.to_be_bytes());
        self.cursor.write_all_at(&slot, self.acks % 2 * 512)?;
        self.cursor.sync_data()?;
        self.acks += 1;

        self.reading = Some(if self.is_done(number, length) {
            self.next(number)?
        } else {
            (number, file)
        });
        Ok(records)
    }

    /// No further group is in this segment.
    fn is_done(&self, number: u64, length: usize) -> bool {
        number < self.number && self.offset + length as u64 > Self::SEGMENT
    }

    /// Unlinks a segment, and goes on to the next one.
    fn next(&mut self, number: u64) -> Result<(u64, File)> {
        fs::remove_file(name(&self.dir, number))?;
        sync_dir(&self.dir)?;
        self.offset = HEADER;
        Ok((number + 1, open(&self.dir, number + 1)?))
    }
}

fn segment(dir: &Path, number: u64) -> Result<File> {
    let unfinished = dir.join("unfinished");
    let file = File::create(&unfinished)?;
    file.write_all_at(&[1; HEADER as usize], 0)?;
    file.sync_data()?;
    fs::rename(unfinished, name(dir, number))?;
    sync_dir(dir)?;
    Ok(file)
}

fn open(dir: &Path, number: u64) -> Result<File> {
    OpenOptions::new().read(true).open(name(dir, number))
}

fn name(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:020}.seg"))
}

fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)?.sync_all()
}

const HEADER: u64 = 1024;
