//! The network between device and gateway, with scissors.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Forwards TCP connections while it is up; while it is cut, it drops those
/// that are open and lets none through.
#[derive(Debug)]
pub(crate) struct Link {
    address: SocketAddr,
    up: watch::Sender<bool>,
}

impl Link {
    /// Begins to forward from a free port of the loopback address, for as long
    /// as the runtime runs.
    pub(crate) async fn start(gateway: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (up, is_up) = watch::channel(true);
        tokio::spawn(async move {
            // Accepting on loopback fails when the process is out of files:
            // there is nothing left to demonstrate then.
            while let Ok((device, _)) = listener.accept().await {
                tokio::spawn(forward(device, gateway, is_up.clone()));
            }
        });
        Ok(Self { address, up })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn cut(&self) {
        self.up.send_replace(false);
    }

    pub(crate) fn restore(&self) {
        self.up.send_replace(true);
    }
}

async fn forward(mut device: TcpStream, gateway: SocketAddr, mut is_up: watch::Receiver<bool>) {
    if !*is_up.borrow() {
        return;
    }
    let Ok(mut gateway) = TcpStream::connect(gateway).await else {
        return;
    };
    tokio::select! {
        // Whichever side closes first has closed both: nothing to report.
        _ = copy_bidirectional(&mut device, &mut gateway) => {}
        _ = is_up.wait_for(|up| !up) => {}
    }
}
