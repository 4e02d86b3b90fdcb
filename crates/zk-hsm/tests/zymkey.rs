//! The backend `zymkey`, against the simulated chip.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use signature::Verifier;
use tempfile::TempDir;
use zk_hsm::{Hsm, HsmUri, Options};
use zk_hsm_sim::{Device, Model};

#[test]
fn smoke() {
    let dir = TempDir::new().unwrap();
    let device = Device::create(dir.path(), Model::Zymkey4i).unwrap();
    let uri: HsmUri = format!(
        "zymkey:slot=0?module-path={}",
        device.module_path().display()
    )
    .parse()
    .unwrap();
    let hsm = Hsm::open(&uri, Options::default()).unwrap();
    let s = hsm.sign(b"m").unwrap();
    hsm.public_key().verify(b"m", &s).unwrap();
    println!("{:?} {:?}", hsm.info(), hsm.health());
    let locked = hsm.lock(b"secret").unwrap();
    assert_eq!(*hsm.unlock(&locked).unwrap(), b"secret");
    assert_eq!(hsm.random(7).unwrap().len(), 7);
    println!("{:?}", zk_hsm::list_keys(&uri, Options::default().deadline));
    println!(
        "{:?}",
        zk_hsm::generate_key(&uri, Options::default().deadline)
    );
    let u: HsmUri = format!(
        "zymkey:slot=5?module-path={}",
        device.module_path().display()
    )
    .parse()
    .unwrap();
    println!("{:?}", Hsm::open(&u, Options::default()));
}
