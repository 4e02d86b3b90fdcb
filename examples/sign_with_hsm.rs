//! One key, opened by its URI: sign, let somebody else verify, lock and unlock
//! a secret, draw random numbers.
//!
//! ```sh
//! cargo run -p zk-examples --bin sign_with_hsm                     # a new key in a file
//! cargo run -p zk-examples --bin sign_with_hsm -- zymkey:slot=0    # on a Pi with a Zymkey
//! ```

use anyhow::{Result, bail, ensure};
use p256::ecdsa::signature::Verifier;
use p256::ecdsa::{Signature, VerifyingKey};
use p256::pkcs8::{DecodePublicKey, EncodePublicKey, LineEnding};
use zk_hsm::{Error, Hsm, HsmUri, Options, create_soft_key};

fn main() -> Result<()> {
    // Removed when it is dropped, and a key made in it too.
    let directory = tempfile::tempdir()?;
    let uri: HsmUri = match std::env::args().nth(1) {
        Some(uri) => uri.parse()?,
        None => create_soft_key(directory.path().join("key.pem"))?,
    };

    // One thread owns the HSM from here on. Clone the handle and use it from
    // any thread; each call blocks until the HSM has answered, at most for
    // `Options::deadline`. In async code, call from `spawn_blocking`.
    let hsm = Hsm::open(&uri, Options::default())?;
    println!("opened     {uri}");
    if hsm.info()?.development {
        println!("           a key for development: no hardware protects it");
    }

    // What is published: the public key once, 64 bytes beside each message.
    let message = b"21.437 degrees";
    let public_key = hsm.public_key().to_public_key_pem(LineEnding::LF)?;
    let signature = hsm.sign(message)?.to_bytes();
    println!("signed     {} bytes, r and s", signature.len());

    verify_elsewhere(&public_key, message, &signature)?;
    println!("verified   by the public key alone");
    ensure!(
        verify_elsewhere(&public_key, b"99.000 degrees", &signature).is_err(),
        "a signature must not fit another message"
    );
    println!("refused    the same signature under another message");

    // Only this HSM opens what it has locked: for secrets that lie on a card
    // which can be stolen.
    let mut locked = hsm.lock(b"a password")?;
    let secret = hsm.unlock(&locked)?;
    ensure!(
        *secret == b"a password",
        "unlock gives back what was locked"
    );
    println!("unlocked   {} of {} bytes", secret.len(), locked.len());

    let middle = locked.len() / 2;
    locked[middle] ^= 1;
    match hsm.unlock(&locked) {
        Err(Error::UnlockRefused) => println!("refused    to unlock it with one bit changed"),
        Err(error) => return Err(error.into()),
        Ok(_) => bail!("changed data must not unlock"),
    }

    println!("random     {} bytes", hsm.random(32)?.len());
    println!("counted    {} signature", hsm.counters().signatures);
    Ok(())
}

/// What anybody can do with a P-256 library (here RustCrypto's), knowing nothing
/// of this workspace: ECDSA over SHA-256 of the message.
fn verify_elsewhere(public_key_pem: &str, message: &[u8], signature: &[u8]) -> Result<()> {
    let key = VerifyingKey::from_public_key_pem(public_key_pem)?;
    key.verify(message, &Signature::from_slice(signature)?)?;
    Ok(())
}
