//! Files: bytes at offsets, done in any order.

use std::collections::VecDeque;

use super::event::{Event, SourceId};
use super::kernel::State;
use super::source::Role;
use crate::error::ErrorKind;
use crate::operation::{Operation, OperationId, OperationKind, Payload};

pub(crate) struct File {
    contents: Vec<u8>,
    pub(crate) operations: VecDeque<Operation>,
}

impl File {
    pub(crate) fn new(length: usize) -> Self {
        Self { contents: vec![0; length], operations: VecDeque::new() }
    }
}

impl State {
    pub(crate) fn start_file(&mut self, source: SourceId, operation: Operation) {
        let id = operation.id();
        if let Role::File(file) = &mut self.sources[source].role {
            file.operations.push_back(operation);
        }
        self.soon(Event::File(source, id));
    }

    /// A file operation is done, unless it was cancelled.
    pub(crate) fn file_operation(&mut self, source: SourceId, id: OperationId) {
        let file_error = self.faults.file_error;
        let fails = self.strikes(file_error);
        let Role::File(file) = &mut self.sources[source].role else { return };
        let Some(place) = file.operations.iter().position(|operation| operation.id() == id) else {
            return;
        };
        let Some(mut operation) = file.operations.remove(place) else { return };
        if fails {
            return self.finish(source, operation, 0, Some(ErrorKind::Other));
        }
        let offset = usize::try_from(operation.inner.offset).unwrap_or(usize::MAX);
        let (bytes, error) = match (operation.kind(), &mut operation.inner.payload) {
            (OperationKind::WriteAt, Payload::Data(data)) => {
                let data = data.as_slice();
                let length = file.contents.len();
                let is_behind = offset > length && planted!(WriteAtWrongOffset);
                let at = if offset == usize::MAX || is_behind { length } else { offset };
                if length < at + data.len() {
                    file.contents.resize(at + data.len(), 0);
                }
                file.contents[at..at + data.len()].copy_from_slice(data);
                (data.len(), None)
            }
            (OperationKind::ReadAt, Payload::Buffer(buffer)) => {
                let left = &file.contents[offset.min(file.contents.len())..];
                let count = left.len().min(buffer.capacity());
                buffer.extend_from_slice(&left[..count]);
                let at_end = left.is_empty() && buffer.capacity() > 0;
                (count, at_end.then_some(ErrorKind::EndOfFile))
            }
            _ => unreachable!("a file is read or written"),
        };
        self.finish(source, operation, bytes, error);
    }
}
