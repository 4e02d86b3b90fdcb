//! Which device a library is, and what stays with it.

use std::env;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::support::{Chip, EINVAL, ENODEV, EPERM, Module, Room, room};
use zk_hsm_sim::{Device, Error, Model, Settings, Unlock};

#[test]
fn two_devices_in_one_process_are_apart() {
    let (one, other) = (room(Model::Zymkey4i), room(Model::Hsm6));
    let (first, second) = (one.chip(), other.chip());
    assert_ne!(first.public_key(0), second.public_key(0));
    assert_ne!(
        first.text("zkGetSerialNumberString"),
        second.text("zkGetSerialNumberString")
    );
    assert!(first.slots(false).is_err() && second.slots(false).is_ok());
    let (locked, shared) = (first.lock(b"mine", false), first.lock(b"ours", true));
    assert_eq!(second.unlock(&locked, false), Ok((None, 0)));
    let opened = second.unlock(&shared, true);
    assert_eq!(opened, Ok((Some(b"ours".to_vec()), 1)));
    // And nobody else's context is good.
    second.close().unwrap();
    first.public_key(0).unwrap();
}

#[test]
fn keys_outlive_the_process() {
    let room = room(Model::Hsm6);
    let first = room.chip();
    assert_eq!(first.number("zkGenKeyPair", 0), Ok(16));
    let locked = first.lock(b"a passphrase", false);
    room.device.breach(0, 7).unwrap();

    // Another copy in the same directory is what another process has.
    let copy = room.dir.path().join("device/copy.so");
    fs::copy(room.device.module_path(), &copy).unwrap();
    let second = Module::load(&copy).open().unwrap();
    for slot in [0, 11, 16] {
        assert_eq!(first.public_key(slot), second.public_key(slot));
    }
    let opened = second.unlock(&locked, false);
    assert_eq!(opened, Ok((Some(b"a passphrase".to_vec()), 1)));
    assert_eq!(second.perimeter(), Ok(vec![7, 0]));
    // What one changes the other sees.
    second.remove_key(16, false).unwrap();
    assert!(first.public_key(16).is_err());
}

#[test]
fn many_processes_may_open_a_new_device_at_once() {
    let room = room(Model::Zymkey4i);
    let copies: Vec<_> = (0..8)
        .map(|n| {
            let copy = room.dir.path().join(format!("device/copy-{n}.so"));
            fs::copy(room.device.module_path(), &copy).unwrap();
            Module::load(&copy)
        })
        .collect();
    let threads: Vec<_> = copies
        .into_iter()
        .map(|module| std::thread::spawn(move || module.open().unwrap().public_key(2).unwrap()))
        .collect();
    let mut keys: Vec<_> = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .collect();
    keys.dedup();
    assert_eq!(keys.len(), 1);
}

#[test]
fn a_link_leads_to_the_device() {
    let room = room(Model::Hsm4);
    let link = room.dir.path().join("libzk_app_utils.so");
    symlink(room.device.module_path(), &link).unwrap();
    let chip = Module::load(&link).open().unwrap();
    let model = chip.text("zkGetModelNumberString").unwrap().unwrap();
    assert!(model.starts_with("HSM4 SIMULATOR"));
}

#[test]
fn a_relative_path_leads_there_too() {
    let room = room(Model::Hsm4);
    let output = probe_command(Path::new("./libzk_hsm_sim.so"))
        .current_dir(room.dir.path().join("device"))
        .output()
        .unwrap();
    assert!(probed(&output)[0].starts_with("HSM4"));
}

#[test]
fn only_its_owner_may_look_into_a_device() {
    let room = room(Model::Zymkey4i);
    room.chip();
    let device = room.dir.path().join("device");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&device), 0o700);
    assert_eq!(mode(&device.join("state.toml")), 0o600);
    assert_eq!(mode(&room.device.module_path()) & 0o022, 0);
    assert!(room.device.module_path().is_absolute());
}

#[test]
fn a_directory_becomes_a_device_once() {
    let room = room(Model::Zymkey4i);
    let directory = room.dir.path().join("device");
    let again = Device::create(&directory, Model::Hsm6).unwrap_err();
    assert!(matches!(again, Error::Exists { .. }), "{again}");
    Device::open(&directory).unwrap();
    let none = Device::open(room.dir.path()).unwrap_err();
    assert!(matches!(none, Error::NotADevice { .. }), "{none}");
    let mut settings = Settings::from(Model::Zymkey4i);
    settings.serial = Some("with\nnewline".to_owned());
    let bad = Device::create(room.dir.path().join("other"), settings).unwrap_err();
    assert!(matches!(bad, Error::Syntax { .. }), "{bad}");
    assert!(!room.dir.path().join("other").exists());
}

#[test]
fn settings_are_strict() {
    for text in [
        "model = \"hsm7\"",
        "colour = \"red\"",
        "unlock = 1",
        "serial = \"\"",
        "serial = \"ä\"",
        "model",
    ] {
        let room = room(Model::Zymkey4i);
        let directory = room.dir.path().join("device");
        fs::write(directory.join("zk-hsm-sim.toml"), text).unwrap();
        assert_eq!(room.load().open().err(), Some(EINVAL), "{text}");
        assert!(Device::open(&directory).is_err(), "{text}");
    }
    // And once they are mended, the same library opens.
    let room = room(Model::Zymkey4i);
    let settings = room.dir.path().join("device/zk-hsm-sim.toml");
    let good = fs::read(&settings).unwrap();
    fs::write(&settings, "model").unwrap();
    let module = room.load();
    assert!(module.open().is_err());
    fs::write(&settings, good).unwrap();
    module.open().unwrap();
}

#[test]
fn a_damaged_state_is_an_error_that_shows_no_key() {
    let room = room(Model::Zymkey4i);
    let key = room.chip().public_key(0).unwrap();
    let path = room.dir.path().join("device/state.toml");
    let state = fs::read_to_string(&path).unwrap();
    // The first character of a secret key is no longer hexadecimal.
    let damaged = state.replacen("secret = \"", "secret = \"x", 1);
    assert_ne!(damaged, state);
    fs::write(&path, &damaged).unwrap();
    let output = probe(&room, &[]);
    assert!(!output.status.success());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("state.toml"), "{error}");
    let secrets = state.split('"').filter(|text| text.len() == 64);
    assert_eq!(secrets.clone().count(), 4);
    for secret in secrets {
        assert!(!error.contains(&secret[1..]), "{error}");
    }
    fs::write(&path, &state).unwrap();
    assert_eq!(room.chip().public_key(0).unwrap(), key);
}

#[test]
fn a_missing_library_is_named_with_the_command_that_builds_it() {
    if let Some(directory) = env::var_os("PROBE_NEW_DEVICE") {
        let error = Device::create(directory, Model::Zymkey4i).unwrap_err();
        assert!(matches!(error, Error::LibraryMissing { .. }));
        println!("\nprobe: {error}");
        return;
    }
    let elsewhere = TempDir::new().unwrap();
    let program = elsewhere.path().join("program");
    fs::copy(env::current_exe().unwrap(), &program).unwrap();
    let device = elsewhere.path().join("device");
    let output = Command::new(&program)
        .args(["--nocapture", "--exact"])
        .arg("devices::a_missing_library_is_named_with_the_command_that_builds_it")
        .env("PROBE_NEW_DEVICE", &device)
        .output()
        .unwrap();
    let error = probed(&output).concat();
    assert!(error.contains("cargo build -p zk-hsm-sim"), "{error}");
    assert!(error.contains(program.to_str().unwrap()), "{error}");
    assert!(!device.exists());
}

/// Prints what the environment's device is. The tests below run it in processes
/// of their own.
#[test]
fn probe_of_the_environment() {
    let Some(library) = env::var_os("PROBE_LIBRARY") else {
        return;
    };
    let module = Module::load(Path::new(&library));
    let chips: [Chip; 2] = [0, 1].map(|_| match module.open() {
        Ok(chip) => chip,
        Err(code) => panic!("zkOpen: {code}"),
    });
    assert_eq!(chips[0].public_key(0), chips[1].public_key(0));
    let locked = chips[0].lock(b"x", false);
    println!(
        "\nprobe: {} | {} | {:?} | {:?}",
        chips[0].text("zkGetModelNumberString").unwrap().unwrap(),
        chips[0].text("zkGetSerialNumberString").unwrap().unwrap(),
        chips[1].unlock(&locked, false).unwrap().1,
        chips[1].public_key(0).unwrap(),
    );
}

fn probe(room: &Room, environment: &[(&str, &str)]) -> Output {
    probe_of(&room.device.module_path(), environment)
}

fn probe_of(library: &Path, environment: &[(&str, &str)]) -> Output {
    let mut command = probe_command(library);
    command.envs(environment.iter().copied()).output().unwrap()
}

fn probe_command(library: &Path) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--exact", "--nocapture"])
        .arg("devices::probe_of_the_environment")
        .env("PROBE_LIBRARY", library);
    command
}

/// Model, serial number, what unlocking returns, public key.
fn probed(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix("probe: "));
    line.unwrap().split(" | ").map(str::to_owned).collect()
}

/// The library as cargo leaves it, beside no device.
fn bare(room: &Room) -> std::path::PathBuf {
    let library = room.dir.path().join("bare.so");
    fs::copy(room.device.module_path(), &library).unwrap();
    library
}

#[test]
fn without_a_directory_it_is_a_device_of_the_process() {
    let room = room(Model::Zymkey4i);
    let library = bare(&room);
    let (one, other) = (probe_of(&library, &[]), probe_of(&library, &[]));
    let (first, second) = (probed(&one), probed(&other));
    assert_eq!(first[0], "Zymkey 4i SIMULATOR (zk-hsm-sim)");
    assert_eq!(first[1], "SIMULATOR-0");
    assert_eq!(first[2], "1");
    assert_ne!(first[3], second[3]);
    // It says so, and once, though there are two contexts.
    let error = String::from_utf8(one.stderr).unwrap();
    assert_eq!(error.matches("SIMULATOR").count(), 1, "{error}");

    let environment = [
        ("ZK_HSM_SIM_MODEL", "hsm6"),
        ("ZK_HSM_SIM_UNLOCK", "header"),
    ];
    let told = probed(&probe_of(&library, &environment));
    assert_eq!((&told[0][..4], &told[2][..]), ("HSM6", "0"));
    // Nothing is left behind.
    assert_eq!(fs::read_dir(room.dir.path()).unwrap().count(), 2);
}

#[test]
fn the_environment_goes_before_the_directory_of_the_file() {
    let mut settings = Settings::from(Model::Zymkey4i);
    settings.unlock = Unlock::Header;
    settings.serial = Some("17".to_owned());
    let (room, other) = (room(settings), room(Model::Hsm4));
    let own = probed(&probe(&room, &[]));
    assert_eq!((&own[1][..], &own[2][..]), ("SIMULATOR-17", "0"));
    assert_eq!(own[3], format!("{:?}", room.chip().public_key(0).unwrap()));

    let directory = other.dir.path().join("device");
    let directory = directory.to_str().unwrap();
    let named = [("ZK_HSM_SIM_DIR", directory)];
    let named = probed(&probe(&room, &named));
    assert!(named[0].starts_with("HSM4"));
    assert_eq!(
        named[3],
        format!("{:?}", other.chip().public_key(0).unwrap())
    );
    assert_eq!(probed(&probe(&room, &[("ZK_HSM_SIM_DIR", "")])), own);

    let told = probed(&probe(&room, &[("ZK_HSM_SIM_UNLOCK", "client")]));
    assert_eq!((&told[2][..], &told[3]), ("1", &own[3]));
}

#[test]
fn what_the_environment_must_not_say_is_refused() {
    let room = room(Model::Zymkey4i);
    for (name, value, code) in [
        ("ZK_HSM_SIM_MODEL", "HSM6", EINVAL),
        ("ZK_HSM_SIM_UNLOCK", "yes", EINVAL),
        ("ZK_HSM_SIM_DIR", "/nonexistent", ENODEV),
        ("ZK_HSM_SIM_DIR", room.dir.path().to_str().unwrap(), ENODEV),
    ] {
        let output = probe(&room, &[(name, value)]);
        assert!(!output.status.success());
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains(&format!("zkOpen: {code}")), "{error}");
        let said = error.lines().find(|line| line.starts_with("zk-hsm-sim: "));
        assert!(said.is_some_and(|line| line.contains(value)), "{error}");
    }
    // What a test compares with is what it means.
    assert_eq!((EPERM, EINVAL, ENODEV), (-1, -22, -19));
}
