//! A TensorBoard event file of scalars.
//!
//! The file is a series of TFRecords (length, its checksum, data, its checksum; little-endian),
//! each an `Event` message of `tensorflow/core/util/event.proto`, of which scalars need few fields.
//! A training that goes on writes a new file with all that is still true and removes the earlier
//! one: a dashboard that has read too far starts over at the mark of a new session.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use crate::{
    sae::SaeError,
    stage::{atomic, heartbeat::host},
};

/// How event files are called: TensorBoard looks for it.
const PREFIX: &str = "events.out.tfevents.";

/// The scalars of one step.
#[derive(Clone, Debug)]
pub struct Event<'a> {
    /// Seconds of the epoch.
    pub time: f64,
    /// The step.
    pub step: u64,
    /// Tags and values.
    pub scalars: Vec<(&'a str, f64)>,
}

/// An event file that grows.
#[derive(Debug)]
pub struct EventFile {
    file: fs_err::File,
}

impl EventFile {
    /// Begins a file in `dir` with these events, at `time` in seconds of the epoch, in place of
    /// those that are there.
    ///
    /// # Errors
    /// Any I/O error, naming the path.
    pub fn begin<'a>(
        dir: &Path,
        time: f64,
        events: impl Iterator<Item = Event<'a>>,
    ) -> Result<Self, SaeError> {
        fs_err::create_dir_all(dir)?;
        atomic::sweep(dir)?;
        let earlier = event_files(dir)?;
        let process = std::process::id();
        let path = dir.join(format!("{PREFIX}{:010}.{}.{process}", time as u64, host()));
        let mut bytes = record(&version(time));
        bytes.extend(record(&session(time)));
        events.for_each(|event| bytes.extend(record(&event.encoded())));
        atomic::write(&path, &bytes)?;
        for file in earlier.into_iter().filter(|file| *file != path) {
            fs_err::remove_file(file)?;
        }
        Ok(Self { file: fs_err::OpenOptions::new().append(true).open(path)? })
    }

    /// Adds an event, which a dashboard sees at once.
    ///
    /// # Errors
    /// Any I/O error, naming the path.
    pub fn push(&mut self, event: &Event<'_>) -> Result<(), SaeError> {
        Ok(self.file.write_all(&record(&event.encoded()))?)
    }
}

fn event_files(dir: &Path) -> Result<Vec<PathBuf>, SaeError> {
    let mut files = vec![];
    for entry in fs_err::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            files.push(entry.path());
        }
    }
    Ok(files)
}

impl Event<'_> {
    fn encoded(&self) -> Vec<u8> {
        let mut summary = vec![];
        for (tag, value) in &self.scalars {
            let mut scalar = vec![];
            bytes_field(&mut scalar, 1, tag.as_bytes());
            key(&mut scalar, 2, Wire::Fixed32);
            scalar.extend((*value as f32).to_le_bytes());
            bytes_field(&mut summary, 1, &scalar);
        }
        let mut event = begun(self.time);
        key(&mut event, 2, Wire::Varint);
        varint(&mut event, self.step);
        bytes_field(&mut event, 5, &summary);
        event
    }
}

/// What a file begins with.
fn version(time: f64) -> Vec<u8> {
    let mut event = begun(time);
    bytes_field(&mut event, 3, b"brain.Event:2");
    event
}

/// `SessionLog { status: START }` at step 0: whatever was read before is void.
fn session(time: f64) -> Vec<u8> {
    let mut event = begun(time);
    bytes_field(&mut event, 7, &[0x08, 0x01]);
    event
}

/// An event's wall time.
fn begun(time: f64) -> Vec<u8> {
    let mut event = vec![];
    key(&mut event, 1, Wire::Fixed64);
    event.extend(time.to_le_bytes());
    event
}

/// Protocol buffers' wire types.
#[derive(Clone, Copy)]
enum Wire {
    Varint = 0,
    Fixed64 = 1,
    Length = 2,
    Fixed32 = 5,
}

fn key(out: &mut Vec<u8>, field: u64, wire: Wire) {
    varint(out, field << 3 | wire as u64);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn bytes_field(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    key(out, field, Wire::Length);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

/// A TFRecord of `data`.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let sum = |bytes: &[u8]| masked(crc32c(bytes)).to_le_bytes();
    [&length[..], &sum(&length), data, &sum(data)].concat()
}

/// Checksums of data that holds checksums are masked.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), bit by bit: a record has a few hundred bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, B.4.
    #[test]
    fn checksums_are_those_of_the_standard() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    /// What tensorboard 2.21.0 writes for the same three events.
    const GOLDEN: &str = "1800000000000000a37f4b220900000000004a93401a0d627261696e2e4576656e743a32\
        65b8d3fb0d000000000000003c37b8340900000000004a93403a020801beb2b7563500000000000000d6c55de6\
        0900000000004a934010ac022a270a100a09747261696e2f6d7365150000803e0a130a0c6f7074696d69736572\
        2f6c721517b75139b6dc9d09";

    #[test]
    fn a_file_has_the_bytes_of_tensorboard_and_takes_the_place_of_the_earlier_one() {
        let dir = tempfile::tempdir().unwrap();
        fs_err::write(dir.path().join(format!("{PREFIX}0000000001.x.1")), "earlier").unwrap();
        let scalars = vec![("train/mse", 0.25), ("optimiser/lr", 2e-4)];
        let event = Event { time: 1234.5, step: 300, scalars };
        let once = std::iter::once(event.clone());
        let mut file = EventFile::begin(dir.path(), 1234.5, once).unwrap();
        let files = event_files(dir.path()).unwrap();
        assert_eq!(files.len(), 1);
        let written = || {
            let bytes = fs_err::read(&files[0]).unwrap();
            bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        assert_eq!(written(), GOLDEN);
        file.push(&event).unwrap();
        assert_eq!(written(), format!("{GOLDEN}{}", &GOLDEN[GOLDEN.len() - 138..]));
    }
}
