//! Cancelling.

use crate::operation::OperationId;
use crate::port::{AssociatedFile, DatagramSocket, ListenSocket, StreamSocket};

macro_rules! cancel {
    ($source:ident) => {
        impl $source {
            /// Asks to cancel one operation of this source, from any thread. Its packet still
            /// comes: with [`Cancelled`](crate::ErrorKind::Cancelled), or with its result where it
            /// had in fact succeeded, and nothing of that is lost (rules 78, 83).
            ///
            /// Returns `false` where there is nothing to cancel, also where the packet is queued
            /// already (rule 80).
            ///
            /// References: Microsoft Learn, "CancelIoEx function".
            pub fn cancel(&self, operation: OperationId) -> bool {
                self.handle.source.cancel(operation)
            }

            /// Asks to cancel every operation of this source, whoever started it (rule 79), and
            /// returns how many there were.
            pub fn cancel_all(&self) -> usize {
                self.handle.source.cancel_all()
            }
        }
    };
}
cancel!(ListenSocket);
cancel!(StreamSocket);
cancel!(DatagramSocket);
cancel!(AssociatedFile);
