//! A backend that fails as it is told, for this crate's own tests.

use std::collections::VecDeque;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ecdsa::SigningKey;
use p256::NistP256;
use p256::elliptic_curve::Generate;
use signature::hazmat::PrehashSigner;
use zeroize::Zeroizing;

use crate::backend::{Backend, Opener};
use crate::error::{Class, Error};
use crate::hsm::{Health, Hsm, Info, Options, Signature, VerifyingKey};
use crate::uri::BackendKind;

/// A chip whose next calls and openings are scripted; past the script's end
/// everything works. All that are opened share it, as they would share a chip.
#[derive(Clone)]
pub(crate) struct Chip(Arc<Mutex<Inside>>);

struct Inside {
    key: SigningKey<NistP256>,
    openings: VecDeque<Act>,
    calls: VecDeque<Act>,
    opened: usize,
    closed: Sender<()>,
}

/// What one call or opening does.
pub(crate) enum Act {
    /// Works, with one bit of the signature flipped, or with one random byte
    /// fewer than asked for.
    Corrupt(usize),
    /// Fails with a code of this class.
    Fail(Class),
    /// Waits until the test lets it go on, then works.
    Hang(Gate),
    /// Works with another key from here on.
    NewKey,
    /// A defect.
    Panic,
    /// Works.
    Work,
}

pub(crate) struct Gate {
    entered: Sender<()>,
    release: Receiver<()>,
}

/// The test's side of a [`Gate`].
pub(crate) struct Held {
    entered: Receiver<()>,
    release: Sender<()>,
}

pub(crate) fn gate() -> (Gate, Held) {
    let (entered, was_entered) = mpsc::channel();
    let (let_go, release) = mpsc::channel();
    (
        Gate { entered, release },
        Held {
            entered: was_entered,
            release: let_go,
        },
    )
}

impl Held {
    /// Returns when the call has come to the gate.
    pub(crate) fn entered(&self) {
        self.entered
            .recv_timeout(PATIENCE)
            .expect("nothing came to the gate");
    }

    pub(crate) fn release(self) {
        self.release.send(()).expect("nobody is at the gate");
    }
}

impl Chip {
    /// The chip, and a channel that tells when a connection to it was closed.
    pub(crate) fn new() -> (Self, Receiver<()>) {
        let (closed, was_closed) = mpsc::channel();
        let inside = Inside {
            key: SigningKey::generate(),
            openings: VecDeque::new(),
            calls: VecDeque::new(),
            opened: 0,
            closed,
        };
        (Self(Arc::new(Mutex::new(inside))), was_closed)
    }

    pub(crate) fn on_calls(&self, acts: impl IntoIterator<Item = Act>) {
        self.0.lock().unwrap().calls.extend(acts);
    }

    pub(crate) fn on_openings(&self, acts: impl IntoIterator<Item = Act>) {
        self.0.lock().unwrap().openings.extend(acts);
    }

    /// How often it was opened successfully.
    pub(crate) fn opened(&self) -> usize {
        self.0.lock().unwrap().opened
    }

    pub(crate) fn open(&self) -> Hsm {
        self.try_open(options()).expect("the chip opens")
    }

    pub(crate) fn try_open(&self, options: Options) -> Result<Hsm, Error> {
        let uri = "zymkey:slot=0".parse().expect("a URI");
        let chip = self.clone();
        let opener: Opener = Box::new(move || {
            let act = chip.0.lock().unwrap().openings.pop_front();
            chip.act(act, "open")?;
            chip.0.lock().unwrap().opened += 1;
            Ok(Box::new(Connection(chip.clone())))
        });
        Hsm::with_opener(&uri, opener, options)
    }

    /// Does what it is told, and gives the bit to flip.
    fn act(&self, act: Option<Act>, function: &'static str) -> Result<Option<usize>, Error> {
        match act.unwrap_or(Act::Work) {
            Act::Corrupt(bit) => Ok(Some(bit)),
            Act::Fail(class) => Err(Error::Library {
                hsm: "zymkey:slot=0".into(),
                function,
                code: -1,
                meaning: "as the test wants it",
                class,
                next: "nothing is to be done",
            }),
            Act::Hang(gate) => {
                gate.entered.send(()).unwrap();
                // the test may end without releasing
                let _ = gate.release.recv();
                Ok(None)
            }
            Act::NewKey => {
                self.0.lock().unwrap().key = SigningKey::generate();
                Ok(None)
            }
            Act::Panic => panic!("a defect in a backend, as the test wants it"),
            Act::Work => Ok(None),
        }
    }

    fn next_call(&self) -> Result<Option<usize>, Error> {
        let act = self.0.lock().unwrap().calls.pop_front();
        self.act(act, "call")
    }
}

struct Connection(Chip);

impl Connection {
    fn key(&self) -> SigningKey<NistP256> {
        self.0.0.lock().unwrap().key.clone()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // a test that doesn't listen is no failure
        let _ = self.0.0.lock().unwrap().closed.send(());
    }
}

impl Backend for Connection {
    fn info(&mut self) -> Result<Info, Error> {
        info()
    }

    fn health(&mut self) -> Result<Health, Error> {
        self.0.next_call()?;
        Ok(Health::default())
    }

    fn public_key(&mut self) -> Result<VerifyingKey, Error> {
        Ok(*self.key().verifying_key())
    }

    fn sign(&mut self, digest: &[u8; 32]) -> Result<[u8; 64], Error> {
        let flip = self.0.next_call()?;
        let signature: Signature = self.key().sign_prehash(digest).unwrap();
        let mut raw: [u8; 64] = signature.to_bytes().into();
        if let Some(bit) = flip {
            raw[bit / 8] ^= 0x80 >> (bit % 8);
        }
        Ok(raw)
    }

    fn random(&mut self, n: usize) -> Result<Zeroizing<Vec<u8>>, Error> {
        let fewer = self.0.next_call()?.is_some();
        Ok(vec![0; n - usize::from(fewer)].into())
    }

    fn lock(&mut self, plain: &[u8]) -> Result<Vec<u8>, Error> {
        self.0.next_call()?;
        Ok(plain.to_vec())
    }

    fn unlock(&mut self, locked: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        self.0.next_call()?;
        Ok(locked.to_vec().into())
    }
}

pub(crate) fn info() -> Result<Info, Error> {
    Ok(Info {
        backend: BackendKind::Zymkey,
        model: Some("fault".to_owned()),
        serial: None,
        firmware: None,
        development: true,
    })
}

/// So patient that only a defect makes a test give up.
pub(crate) fn options() -> Options {
    Options {
        deadline: PATIENCE,
        ..Options::default()
    }
}

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
