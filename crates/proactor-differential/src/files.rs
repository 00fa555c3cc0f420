//! Steps on a file.

use std::fs::{File, OpenOptions};
use std::io;

use proactor::{AssociatedFile, CompletionPort, ErrorKind};
use tempfile::TempDir;

use crate::random::content;
use crate::world::{Awaited, KEY_FILE, Stop, World};

/// What stands for the end of the file, as an offset (rule 121).
const APPEND: u64 = u64::MAX;

/// The file, in a folder of its own.
pub(crate) struct Files {
    file: AssociatedFile,
    written: u64,
    _folder: TempDir,
}

impl Files {
    pub(crate) fn new(port: &CompletionPort) -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        let file = port.associate(open(&folder)?, KEY_FILE)?;
        Ok(Self { file, written: 0, _folder: folder })
    }
}

fn open(folder: &TempDir) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true);
    // Only a file that was opened for it has overlapped operations (rule 7).
    #[cfg(windows)]
    std::os::windows::fs::OpenOptionsExt::custom_flags(&mut options, FILE_FLAG_OVERLAPPED);
    options.open(folder.path().join("file"))
}

/// Microsoft Learn, "CreateFileW function".
#[cfg(windows)]
const FILE_FLAG_OVERLAPPED: u32 = 0x4000_0000;

impl World {
    /// Rules 119 and 121.
    pub(crate) fn write_file(&mut self, offset: Option<u64>, size: usize) -> Result<(), Stop> {
        let (number, result) = self.start_write(offset.unwrap_or(APPEND), size);
        let place = offset.map_or("the end".to_owned(), |offset| offset.to_string());
        self.say(format!("write #{number} at {place}, {size} bytes: {result:?}"));
        self.collect_file(result, [number])
    }

    fn start_write(&mut self, offset: u64, size: usize) -> (u64, Result<(), ErrorKind>) {
        let bytes = content(1_000_000 + self.files.written, 0, size);
        self.files.written += 1;
        let file = self.files.file.clone();
        self.start(|operation| file.write_at(operation, bytes, offset))
    }

    fn collect_file(
        &mut self,
        result: Result<(), ErrorKind>,
        numbers: impl IntoIterator<Item = u64>,
    ) -> Result<(), Stop> {
        match result {
            Ok(()) => self.collect_and_say(Awaited::finals(numbers)).map(drop),
            Err(_) => Ok(()),
        }
    }

    /// Rules 119, 120 and 122.
    pub(crate) fn read_file(&mut self, offset: u64, room: usize) -> Result<(), Stop> {
        let (file, buffer) = (self.files.file.clone(), Vec::with_capacity(room));
        let (number, result) = self.start(|operation| file.read_at(operation, buffer, offset));
        self.say(format!("read #{number} at {offset}, room {room}: {result:?}"));
        self.collect_file(result, [number])
    }

    /// Rule 44, with several operations on one file in flight, none of which touches another's
    /// bytes.
    pub(crate) fn write_many(&mut self, block: usize, count: usize) -> Result<(), Stop> {
        let mut numbers = Vec::new();
        for index in 0..count {
            let (number, result) = self.start_write((index * block) as u64, block);
            self.say(format!("write #{number}, block {index} of {block} bytes: {result:?}"));
            if result.is_ok() {
                numbers.push(number);
            }
        }
        self.collect_and_say(Awaited::finals(numbers)).map(drop)
    }
}
