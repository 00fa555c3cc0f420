//! One connection's account of what it sent and what must come back. No I/O is done here.

use std::io::IoSlice;

use super::args::StallKind;
use super::pattern::{MARK_BLOCK, MARK_SPIN, Pattern};

/// How many pieces one write may gather.
pub(crate) const SLICE_COUNT: usize = 32;

static BLOCK_BYTE: [u8; 1] = [MARK_BLOCK];
static SPIN_BYTE: [u8; 1] = [MARK_SPIN];

/// A message whose reply is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    /// When the message was sent, or in an open loop was due.
    pub(crate) due_ns: u64,
    /// Whether it carried a stall mark.
    pub(crate) stalled: bool,
}

/// Bytes that should not have come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// A byte differs from what was sent.
    Byte(String),
    /// More came than was sent.
    Extra(String),
}

/// The stream of one connection: positions count bytes since it was opened.
///
/// `verified <= written <= begun`: received and compared; accepted by the
/// kernel; belonging to messages that were begun.
#[derive(Debug)]
pub(crate) struct Connection {
    id: u64,
    message_bytes: u64,
    mark: &'static [u8; 1],
    verified: u64,
    written: u64,
    begun: u64,
    /// Messages begun, and replies taken: indexes into `ring`, modulo its length.
    begun_messages: u64,
    taken_messages: u64,
    /// Stall messages among those outstanding.
    stalls: u64,
    /// For each outstanding message, when it was due, doubled, plus 1 for a stall message.
    ring: Box<[u64]>,
    depth: u64,
}

impl Connection {
    /// Room for `depth` outstanding messages. This is the only allocation a connection makes.
    pub(crate) fn new(message_bytes: u64, depth: usize, stall_kind: StallKind) -> Self {
        assert!(message_bytes > 0 && depth > 0);
        let mark = match stall_kind {
            StallKind::Block => &BLOCK_BYTE,
            StallKind::Spin => &SPIN_BYTE,
        };
        Self {
            id: 0,
            message_bytes,
            mark,
            verified: 0,
            written: 0,
            begun: 0,
            begun_messages: 0,
            taken_messages: 0,
            stalls: 0,
            // A power of two, so that an index is a mask away.
            ring: vec![0; depth.next_power_of_two()].into(),
            depth: depth as u64,
        }
    }

    /// Starts over with another stream.
    pub(crate) fn restart(&mut self, id: u64) {
        self.id = id;
        self.verified = 0;
        self.written = 0;
        self.begun = 0;
        self.begun_messages = 0;
        self.taken_messages = 0;
        self.stalls = 0;
    }

    /// Which stream this is.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Messages begun since the connection was opened.
    pub(crate) fn begun_messages(&self) -> u64 {
        self.begun_messages
    }

    /// Messages whose replies are not complete.
    pub(crate) fn outstanding(&self) -> u64 {
        self.begun_messages - self.taken_messages
    }

    /// Whether another message may be begun.
    pub(crate) fn has_room(&self) -> bool {
        self.outstanding() < self.depth
    }

    /// Bytes of begun messages that the kernel has not taken.
    pub(crate) fn unwritten(&self) -> u64 {
        self.begun - self.written
    }

    /// Begins a message; its bytes are now to be written.
    pub(crate) fn begin(&mut self, due_ns: u64, stalled: bool) {
        assert!(self.has_room(), "the depth is a limit");
        let index = self.ring_index(self.begun_messages);
        self.ring[index] = due_ns << 1 | u64::from(stalled);
        self.stalls += u64::from(stalled);
        self.begun_messages += 1;
        self.begun += self.message_bytes;
    }

    /// Gathers what is to be written, as far as the slices go; gives how many it filled.
    pub(crate) fn gather<'a>(&self, pattern: &'a Pattern, slices: &mut [IoSlice<'a>]) -> usize {
        let mut position = self.written;
        let mut count = 0;
        while position < self.begun && count < slices.len() {
            let run = self.script(pattern, position, (self.begun - position) as usize);
            slices[count] = IoSlice::new(run);
            position += run.len() as u64;
            count += 1;
        }
        count
    }

    /// The kernel took `count` bytes.
    pub(crate) fn wrote(&mut self, count: usize) {
        self.written += count as u64;
        assert!(self.written <= self.begun, "no more is written than was begun");
    }

    /// Compares what came with what was sent.
    pub(crate) fn verify(&mut self, pattern: &Pattern, received: &[u8]) -> Result<(), Wrong> {
        let awaited = (self.written - self.verified) as usize;
        let (expected, extra) = received.split_at(received.len().min(awaited));
        let mut done = 0;
        while done < expected.len() {
            let position = self.verified + done as u64;
            let run = self.script(pattern, position, expected.len() - done);
            if *run != expected[done..done + run.len()] {
                return Err(self.describe(pattern, position, run, &expected[done..]));
            }
            done += run.len();
        }
        self.verified += done as u64;
        if extra.is_empty() {
            return Ok(());
        }
        Err(Wrong::Extra(format!(
            "connection {} received {} bytes beyond the {} it sent",
            self.id,
            extra.len(),
            self.written
        )))
    }

    /// Takes the oldest message whose reply is complete.
    pub(crate) fn take_reply(&mut self) -> Option<Reply> {
        let complete = self.outstanding() > 0
            && (self.taken_messages + 1) * self.message_bytes <= self.verified;
        if !complete {
            return None;
        }
        let entry = self.ring[self.ring_index(self.taken_messages)];
        let stalled = entry & 1 == 1;
        self.taken_messages += 1;
        self.stalls -= u64::from(stalled);
        Some(Reply { due_ns: entry >> 1, stalled })
    }

    /// The bytes of this connection at `position`: a stretch of the pattern, or a mark where a
    /// stall message begins. `position` lies within the messages begun and not yet taken.
    fn script<'a>(&self, pattern: &'a Pattern, position: u64, limit: usize) -> &'a [u8] {
        if self.stalls == 0 {
            return pattern.run(self.id, position, limit);
        }
        let message = position / self.message_bytes;
        let within = position % self.message_bytes;
        if within == 0 && self.ring[self.ring_index(message)] & 1 == 1 {
            return self.mark;
        }
        pattern.run(self.id, position, limit.min((self.message_bytes - within) as usize))
    }

    fn ring_index(&self, message: u64) -> usize {
        message as usize & (self.ring.len() - 1)
    }

    /// Says which byte is wrong and, if it can be told, what came in its place.
    fn describe(&self, pattern: &Pattern, position: u64, run: &[u8], received: &[u8]) -> Wrong {
        let at = run.iter().zip(received).position(|(sent, came)| sent != came).unwrap_or(0);
        let position = position + at as u64;
        let mut line = format!(
            "connection {}, byte {position}: sent 0x{:02x}, received 0x{:02x}",
            self.id, run[at], received[at]
        );
        if let Some(cause) =
            pattern.diagnose(self.id, position, self.message_bytes, &received[at..])
        {
            line.push_str("; ");
            line.push_str(&cause);
        }
        Wrong::Byte(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 64;

    fn connection(depth: usize) -> Connection {
        let mut connection = Connection::new(SIZE as u64, depth, StallKind::Block);
        connection.restart(9);
        connection
    }

    /// Everything there is to write, as one piece.
    fn write_all(connection: &mut Connection, pattern: &Pattern) -> Vec<u8> {
        let mut wire = Vec::new();
        while connection.unwritten() > 0 {
            let mut slices = [IoSlice::new(&[]); SLICE_COUNT];
            let count = connection.gather(pattern, &mut slices);
            let before = wire.len();
            slices[..count].iter().for_each(|slice| wire.extend_from_slice(slice));
            connection.wrote(wire.len() - before);
        }
        wire
    }

    fn sent(depth: usize, stalled: &[usize]) -> (Pattern, Connection, Vec<u8>) {
        let pattern = Pattern::new();
        let mut connection = connection(depth);
        for message in 0..depth {
            connection.begin(100 + message as u64, stalled.contains(&message));
        }
        let wire = write_all(&mut connection, &pattern);
        assert_eq!(wire.len(), depth * SIZE);
        (pattern, connection, wire)
    }

    fn wrong_byte(result: Result<(), Wrong>) -> String {
        match result {
            Err(Wrong::Byte(line)) => line,
            other => panic!("expected a wrong byte, got {other:?}"),
        }
    }

    #[test]
    fn a_faithful_echo_verifies_in_any_pieces() {
        for piece in [1, 7, 64, 65, 1000] {
            let (pattern, mut connection, wire) = sent(40, &[0, 3, 4, 39]);
            let mut replies = Vec::new();
            for chunk in wire.chunks(piece) {
                assert_eq!(connection.verify(&pattern, chunk), Ok(()));
                replies.extend(std::iter::from_fn(|| connection.take_reply()));
            }
            let due: Vec<_> = replies.iter().map(|reply| reply.due_ns).collect();
            assert_eq!(due, (100..140).collect::<Vec<_>>());
            let stalled: Vec<_> = (0..40).filter(|k| replies[*k].stalled).collect();
            assert_eq!(stalled, [0, 3, 4, 39]);
            assert_eq!(connection.outstanding(), 0);
        }
    }

    #[test]
    fn marks_start_stall_messages_and_nothing_else() {
        let (_, _, wire) = sent(8, &[2, 7]);
        for (message, bytes) in wire.chunks(SIZE).enumerate() {
            assert_eq!(bytes[0] == MARK_BLOCK, matches!(message, 2 | 7));
            assert!(!bytes[1..].iter().any(|byte| matches!(*byte, MARK_BLOCK | MARK_SPIN)));
        }
    }

    #[test]
    fn a_flipped_bit_is_found_where_it_is() {
        for at in [0, 63, 64, 200, 511] {
            let (pattern, mut connection, mut wire) = sent(8, &[1]);
            wire[at] ^= 1;
            let line = wrong_byte(connection.verify(&pattern, &wire));
            assert!(line.starts_with(&format!("connection 9, byte {at}: ")), "{line}");
        }
    }

    #[test]
    fn a_lost_message_is_found() {
        let (pattern, mut connection, mut wire) = sent(8, &[]);
        wire.drain(128..192);
        let line = wrong_byte(connection.verify(&pattern, &wire));
        assert!(line.contains("byte 128") && line.contains("64 bytes further on"), "{line}");
    }

    #[test]
    fn a_repeated_message_is_found() {
        let (pattern, mut connection, mut wire) = sent(8, &[]);
        wire.truncate(7 * SIZE);
        wire.splice(128..128, wire[64..128].to_vec());
        let line = wrong_byte(connection.verify(&pattern, &wire));
        assert!(line.contains("byte 128") && line.contains("64 bytes further back"), "{line}");
    }

    #[test]
    fn swapped_messages_are_found() {
        let (pattern, mut connection, mut wire) = sent(8, &[]);
        let (first, second) = wire.split_at_mut(3 * SIZE);
        first[..SIZE].swap_with_slice(&mut second[..SIZE]);
        wrong_byte(connection.verify(&pattern, &wire));
    }

    #[test]
    fn another_connections_message_is_found() {
        let (pattern, mut connection, mut wire) = sent(8, &[]);
        pattern.copy(10, 64, &mut wire[64..128]);
        wrong_byte(connection.verify(&pattern, &wire));
    }

    #[test]
    fn bytes_that_were_not_sent_are_found() {
        let (pattern, mut connection, mut wire) = sent(2, &[]);
        wire.push(0);
        assert!(matches!(connection.verify(&pattern, &wire), Err(Wrong::Extra(_))));
        assert!(connection.take_reply().is_some(), "what was right counts");
    }

    #[test]
    fn a_reply_counts_when_its_last_byte_is_there() {
        let (pattern, mut connection, wire) = sent(1, &[]);
        assert_eq!(connection.verify(&pattern, &wire[..63]), Ok(()));
        assert_eq!(connection.take_reply(), None);
        assert!(!connection.has_room());
        assert_eq!(connection.verify(&pattern, &wire[63..]), Ok(()));
        assert_eq!(connection.take_reply(), Some(Reply { due_ns: 100, stalled: false }));
        assert_eq!(connection.take_reply(), None);
        assert!(connection.has_room());
    }
}
