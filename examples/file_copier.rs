//! Copies a file with several reads and writes in flight at once.
//!
//! Each of the operations moves a block: it is read, the same operation writes what was read, and
//! goes on with the next block that nobody has begun. The packets come in any order; each carries
//! its block's offset in its context.
//!
//! Run it:  cargo run --release --example file_copier -- FROM TO

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::path::Path;
use std::process::ExitCode;

use proactor::{AssociatedFile, CompletionPort, Operation, OperationKind, SendBuffer};

const IN_FLIGHT: usize = 16;
const BLOCK_BYTES: u64 = 256 * 1024;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let [from, to] = &arguments[..] else {
        eprintln!("usage: file_copier FROM TO");
        return ExitCode::from(2);
    };
    match copy(from, to) {
        Ok(bytes) => {
            println!("{bytes} bytes copied");
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("file_copier: {message}");
            ExitCode::FAILURE
        }
    }
}

fn copy(from: &OsString, to: &OsString) -> Result<u64, String> {
    let of = |path: &OsString| {
        let path = path.display().to_string();
        move |error: &dyn std::error::Error| format!("{path}: {error}")
    };
    let (source_error, target_error) = (of(from), of(to));
    let source = File::open(from).map_err(|error| source_error(&error))?;
    let source_data = source.metadata().map_err(|error| source_error(&error))?;
    if !source_data.is_file() {
        return Err(format!("{}: not a regular file", from.display()));
    }
    let mut open = OpenOptions::new();
    let target = open.write(true).create(true).truncate(false).open(to);
    let target = target.map_err(|error| target_error(&error))?;
    if is_same_file(from.as_ref(), to.as_ref()).map_err(|error| target_error(&error))? {
        return Err("FROM and TO are the same file".into());
    }
    // Only now: the file that TO names may have been FROM.
    target.set_len(0).map_err(|error| target_error(&error))?;
    let check = target.try_clone().map_err(|error| target_error(&error))?;

    let port = CompletionPort::new(1).map_err(|error| error.to_string())?;
    let source = port.associate(source, 0).map_err(|error| source_error(&error))?;
    let target = port.associate(target, 0).map_err(|error| target_error(&error))?;
    let copied_bytes = copy_blocks(&port, &source, &target, source_data.len())?;

    let target_bytes = check.metadata().map_err(|error| target_error(&error))?.len();
    if (copied_bytes, target_bytes) != (source_data.len(), source_data.len()) {
        return Err(format!(
            "{} of {} bytes copied, {} has {target_bytes}",
            copied_bytes,
            source_data.len(),
            to.display()
        ));
    }
    Ok(copied_bytes)
}

/// Moves every block, and returns how many bytes were written.
fn copy_blocks(
    port: &CompletionPort,
    source: &AssociatedFile,
    target: &AssociatedFile,
    length_bytes: u64,
) -> Result<u64, String> {
    let mut next_offset = 0;
    let mut in_flight = 0;
    let mut copied_bytes = 0;
    let mut read_next = |mut operation: Operation, buffer| -> Result<bool, String> {
        let offset = next_offset;
        if offset >= length_bytes {
            return Ok(false);
        }
        next_offset += BLOCK_BYTES;
        operation.set_context(offset);
        source.read_at(operation, buffer, offset).map_err(|rejected| rejected.to_string())?;
        Ok(true)
    };
    for _ in 0..IN_FLIGHT {
        let buffer = Vec::with_capacity(BLOCK_BYTES as usize);
        in_flight += usize::from(read_next(Operation::new(), buffer)?);
    }
    // An error returns at once: the port is dropped then, which waits for what is in flight.
    while in_flight > 0 {
        let completion = port.dequeue(None).map_err(|error| error.to_string())?;
        let bytes = completion.result().map_err(|error| error.to_string())? as u64;
        let kind = completion.kind();
        let mut operation = completion.into_operation().expect("a file packet has its operation");
        let offset = *operation.context::<u64>().expect("the offset of its block");
        if kind == OperationKind::ReadAt {
            let wanted_bytes = BLOCK_BYTES.min(length_bytes - offset);
            if bytes < wanted_bytes {
                return Err(format!("FROM became shorter while it was read, at {offset}"));
            }
            let mut buffer = operation.take_buffer().unwrap_or_default();
            buffer.truncate(wanted_bytes as usize);
            target.write_at(operation, buffer, offset).map_err(|rejected| rejected.to_string())?;
        } else {
            copied_bytes += bytes;
            let Some(SendBuffer::Owned(buffer)) = operation.take_send_buffer() else {
                unreachable!("the write was started with a vector")
            };
            in_flight -= usize::from(!read_next(operation, buffer)?);
        }
    }
    Ok(copied_bytes)
}

/// Whether two names lead to one file. (On Windows a second link to it is not seen.)
fn is_same_file(from: &Path, to: &Path) -> std::io::Result<bool> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let (from, to) = (from.metadata()?, to.metadata()?);
        Ok((from.dev(), from.ino()) == (to.dev(), to.ino()))
    }
    #[cfg(not(unix))]
    Ok(from.canonicalize()? == to.canonicalize()?)
}
