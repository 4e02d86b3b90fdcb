//! Every 1-Wire thermometer of a machine: what it says, and what that is worth.
//! With `/sys` as its argument the machine's own; without one, a simulated bus on
//! which things go wrong.
//!
//! ```sh
//! cargo run -p zk-examples --bin read_sensors
//! cargo run -p zk-examples --bin read_sensors /sys
//! ```

use std::time::SystemTime;

use anyhow::Result;
use zk_sensors::{MilliCelsius, SensorId, SimulatedBus, W1Bus};

fn main() -> Result<()> {
    if let Some(root) = std::env::args_os().nth(1) {
        return print_all(&mut W1Bus::new(root));
    }

    // A tree of files like the kernel's. Nothing below knows that it is not.
    let directory = tempfile::tempdir()?;
    let sensors: Vec<SensorId> = ["28-0000000a0001", "28-0000000a0002", "10-00080278d0e4"]
        .into_iter()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let mut wires = SimulatedBus::create(directory.path(), &sensors)?;
    let [cellar, boiler, _] = sensors[..] else {
        return Ok(());
    };
    wires.set(cellar, MilliCelsius(11_062))?;
    wires.set(boiler, MilliCelsius(61_500))?;
    let mut bus = W1Bus::new(wires.root());
    // The boiler's was found to read 0.4 degrees too high.
    bus.set_offsets(&["28-0000000a0002=-0.4".parse()?])?;

    println!("all is well");
    print_all(&mut bus)?;

    // The driver would say 85 degrees and 0 degrees.
    wires.power_on_value(cellar)?;
    wires.false_zero(boiler)?;
    println!("\na supply that fails, and a shorted wire");
    print_all(&mut bus)?;

    wires.unplug(cellar)?;
    wires.set(boiler, MilliCelsius(61_000))?;
    println!("\none is gone, and one is well again");
    print_all(&mut bus)
}

fn print_all(bus: &mut W1Bus) -> Result<()> {
    let readings = bus.read_all(SystemTime::now)?;
    if readings.is_empty() {
        println!("no thermometer");
    }
    let listing = bus.list()?;
    for reading in readings {
        // There is a value exactly if the quality says so; only `ok` says that
        // nothing speaks against it.
        let value = reading.value.map(|value| value.to_string());
        let value = value.unwrap_or_else(|| "-".to_owned());
        print!("{}  {value:>8}  {:<12}", reading.sensor, reading.quality);

        // How it is set is asked of the chip, which may not be there any more.
        let mut listed = listing.thermometers.iter();
        match listed.find(|thermometer| thermometer.id() == reading.sensor) {
            Some(thermometer) => match thermometer.resolution() {
                Ok(Some(bits)) => print!("  {bits} bits"),
                Ok(None) => print!("  fixed"),
                Err(_) => print!("  ?"),
            },
            None => print!("  not listed"),
        }

        // What it said when it was last well is remembered.
        let health = &bus.health()[&reading.sensor];
        if let (true, Some(good)) = (health.failures > 0, health.last_good) {
            let value = good.value.unwrap_or_default();
            print!("  {value} before {} bad", health.failures);
        }
        println!();
    }
    Ok(())
}
