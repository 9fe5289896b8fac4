//! What reads of parts cost, and what readers and TLS do to it.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use crate::figure::{Figure, Target};
use crate::rig::data::Set;
use crate::rig::peer::Peer;
use crate::rig::read::walk;
use crate::rig::stats::Samples;
use crate::rig::store::{Line, Store};
use crate::rig::{Failure, MIB, failed};
use crate::stage::{Load, Stage};
use Target::{AtLeast, AtMost, Stated};

const CHUNK_BYTES: usize = 128 << 10;
const GIANT_CHUNKS: u64 = (1 << 30) / CHUNK_BYTES as u64;
/// Random reads that show the pattern, and those that are counted.
const RANDOM_READS: (usize, usize) = (64, 500);

/// Of an object whose name is known from a listing, against a bare GET.
pub(crate) fn first_byte(stage: &Stage) -> Result<Vec<Figure>, Failure> {
    let store = stage.store(&Line::cloud())?;
    let (mut ours, mut ratios) = (Samples::default(), Samples::default());
    for _ in 0..stage.rounds {
        let mount = stage.field(&store).mount(Peer::Warmfs, &[])?;
        let folder = mount.folder(Set::Large);
        walk(&folder).map_err(failed("listing"))?;
        // One that stays cold: who opens three files has begun to go through a folder.
        let began = Instant::now();
        read_at(&folder.join("00000.bin"), 1, 0)?;
        let took = began.elapsed().as_secs_f64() * 1_000.0;
        ours.push(took);
        ratios.push(took / round_trip_ms(&store)?);
    }
    Ok(vec![
        Figure::new("first byte of a cold 10 MiB object at 30 ms", Stated, ours, "ms"),
        Figure::new("- / one round trip of the store", AtMost(1.3), ratios, "x"),
    ])
}

/// From a request to the first byte of its answer, on a connection that is open.
fn round_trip_ms(store: &Store) -> Result<f64, Failure> {
    let address = store.url().trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).map_err(failed("the store"))?;
    let began = Instant::now();
    stream
        .write_all(b"GET /bench/large/00000.bin HTTP/1.1\r\nHost: x\r\nRange: bytes=0-0\r\n\r\n")
        .and_then(|()| stream.read_exact(&mut [0]))
        .map_err(failed("the store"))?;
    Ok(began.elapsed().as_secs_f64() * 1_000.0)
}

pub(crate) fn header(stage: &Stage) -> Result<Vec<Figure>, Failure> {
    let store = stage.store(&Line::loopback())?;
    let mut fetched = Samples::default();
    for _ in 0..stage.rounds {
        let mount = stage.field(&store).mount(Peer::Warmfs, &[])?;
        read_at(&mount.folder(Set::Giant).join("00000.bin"), 64 << 10, 0)?;
        fetched.push(stage.received(&store, &mount)? as f64 / MIB);
    }
    let name = "header (64 KiB) of a 1 GiB object, closed: fetched";
    Ok(vec![Figure::new(name, AtMost(4.0), fetched, "MiB")])
}

/// Reads of a chunk at multiples of a chunk: twice their bytes is readahead.
pub(crate) fn random(stage: &Stage) -> Result<Vec<Figure>, Failure> {
    let store = stage.store(&Line::loopback())?;
    let mut ratios = Samples::default();
    for round in 0..stage.rounds {
        let mount = stage.field(&store).mount(Peer::Warmfs, &[])?;
        let path = mount.folder(Set::Giant).join("00000.bin");
        let mut dice = fastrand::Rng::with_seed(round as u64);
        let mut chunks: Vec<u64> = (0..GIANT_CHUNKS).collect();
        dice.shuffle(&mut chunks);
        let (shown, counted) = chunks.split_at(RANDOM_READS.0);
        let file = File::open(&path).map_err(failed("open"))?;
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut read = |chunks: &[u64]| {
            let mut at = chunks.iter().map(|chunk| chunk * CHUNK_BYTES as u64);
            at.try_for_each(|at| file.read_exact_at(&mut buffer, at)).map_err(failed("read"))
        };
        read(shown)?;
        let before = stage.received(&store, &mount)?;
        read(&counted[..RANDOM_READS.1])?;
        let fetched = stage.received(&store, &mount)? - before;
        ratios.push(fetched as f64 / (RANDOM_READS.1 * CHUNK_BYTES) as f64);
    }
    let name = "random 128 KiB reads in a 1 GiB object: fetched / read";
    Ok(vec![Figure::new(name, AtMost(2.0), ratios, "x")])
}

/// 1 to 64 readers.
pub(crate) fn sweep(stage: &Stage) -> Result<Vec<Figure>, Failure> {
    const READERS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
    let store = stage.store(&Line::loopback())?;
    let mut rates = vec![Samples::default(); READERS.len()];
    for _ in 0..stage.rounds {
        for (readers, rates) in READERS.iter().zip(&mut rates) {
            let cold = stage.cold(&store, Peer::Warmfs, Load::of(Set::Large, *readers))?;
            rates.push(cold.epoch.mib_per_s());
        }
    }
    let best = rates.iter().map(Samples::median).fold(0.0, f64::max);
    let last = rates.last().map_or(f64::NAN, Samples::median);
    let what = stage.data.describe(Set::Large);
    let mut figures: Vec<Figure> = READERS
        .iter()
        .zip(rates)
        .map(|(readers, rates)| {
            Figure::new(format!("{what}, {readers} readers"), Stated, rates, "MiB/s")
        })
        .collect();
    let ratio = Samples::from_iter([last / best]);
    figures.push(Figure::new("- 64 readers / the best", AtLeast(0.9), ratio, "x"));
    Ok(figures)
}

pub(crate) fn tls(stage: &Stage) -> Result<Vec<Figure>, Failure> {
    let store = stage.store(&Line::tls())?;
    let (mut rates, mut cpu) = (Samples::default(), Samples::default());
    for _ in 0..stage.rounds {
        let cold = stage.cold(&store, Peer::Warmfs, Load::of(Set::Large, 20))?;
        rates.push(cold.epoch.mib_per_s());
        cpu.push(cold.cpu_s_per_gib());
    }
    let name = format!("{}, 20 readers, TLS, cold", stage.data.describe(Set::Large));
    Ok(vec![
        Figure::new(name, Stated, rates, "MiB/s"),
        Figure::new("- CPU of the daemon", Stated, cpu, "s/GiB"),
    ])
}

/// Opens, reads and closes.
fn read_at(path: &Path, bytes: usize, at: u64) -> Result<(), Failure> {
    let mut buffer = vec![0; bytes];
    File::open(path).and_then(|file| file.read_exact_at(&mut buffer, at)).map_err(failed("read"))
}
