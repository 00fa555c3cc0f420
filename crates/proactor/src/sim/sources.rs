//! What can be associated with a port of a world.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use super::Raw;
use crate::backend::sim::{Kernel, What};

macro_rules! simulated {
    ($(#[$attribute:meta])* $name:ident) => {
        $(#[$attribute])*
        pub struct $name {
            source: Raw,
        }

        impl $name {
            pub(crate) fn into_source(self) -> Raw {
                self.source
            }

            pub(crate) fn from_source(source: Raw) -> Self {
                Self { source }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    };
}

simulated! {
    /// A listener of a world: [`World::listen`](super::World::listen). Associated it is a
    /// [`ListenSocket`](crate::ListenSocket).
    SimListener
}
simulated! {
    /// A datagram socket of a world: [`World::bind_datagram`](super::World::bind_datagram).
    /// Associated it is a [`DatagramSocket`](crate::DatagramSocket).
    SimDatagramSocket
}
simulated! {
    /// A file of a world: [`World::file`](super::World::file). Associated it is an
    /// [`AssociatedFile`](crate::AssociatedFile).
    SimFile
}

impl SimListener {
    pub(crate) fn bind(
        kernel: &Arc<Kernel>,
        address: SocketAddr,
        backlog: usize,
    ) -> io::Result<Self> {
        Ok(Self { source: Raw::listener(kernel, address, backlog)? })
    }

    /// The address that it listens at.
    pub fn local_address(&self) -> SocketAddr {
        match self.source.what {
            What::Listener(address, _) => address,
            _ => unreachable!("a listener"),
        }
    }
}

impl SimDatagramSocket {
    pub(crate) fn bind(kernel: &Arc<Kernel>, address: SocketAddr) -> io::Result<Self> {
        let mut guard = kernel.lock();
        let address = guard.choose_address(address);
        if guard.datagram_sockets.contains_key(&address) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        drop(guard);
        Ok(Self { source: Raw::new(kernel, What::Datagram(address)) })
    }

    /// The address that it is bound to.
    pub fn local_address(&self) -> SocketAddr {
        match self.source.what {
            What::Datagram(address) => address,
            _ => unreachable!("a datagram socket"),
        }
    }
}

impl SimFile {
    pub(crate) fn new(kernel: &Arc<Kernel>, length: usize) -> Self {
        Self { source: Raw::new(kernel, What::File(length)) }
    }
}
