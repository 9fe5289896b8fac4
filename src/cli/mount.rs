//! `warmfs mount`: checks, finds or starts the daemon, asks for the mounts.

use super::args::{MountArgs, MountPlan};
use super::daemon::hear_hang_ups;
use super::interrupt::Interrupt;
use super::launch::{self, Launched};
use super::notify::Manager;
use super::{client_runtime, logging, output, run_daemon};
use crate::config::MountRequest;
use crate::control::client::Client;
use crate::control::wire::{ErrorCode, ErrorReply, MountReply, UnmountRequest, WaitRequest};
use crate::daemon::{self, StartError, Supervision, preflight, read_through};
use crate::units::format_bytes;

/// Daemons tried. One may exit between answering and mounting, since its last
/// mount went; a second time in a row is chance, a third a defect.
const ATTEMPTS_MAX: usize = 3;

/// Mounts, and returns once the mounts can be read.
pub(super) fn run(args: MountArgs) -> Result<(), ErrorReply> {
    run_plan(&args.check()?)
}

/// The same for options that are checked.
pub(super) fn run_plan(plan: &MountPlan) -> Result<(), ErrorReply> {
    for request in plan.requests() {
        preflight::check(request, &plan.cache.dir)?;
    }
    if plan.foreground {
        let manager = Manager::from_env();
        let ended = run_daemon(foreground(plan, &manager));
        ended.inspect_err(|error| manager.status(&error.to_string()))
    } else {
        client_runtime()?.block_on(background(plan))
    }
}

/// What can be mounted is, whatever becomes of the others: the same command again is
/// about those that are missing.
async fn background(plan: &MountPlan) -> Result<(), ErrorReply> {
    let mut result = Ok(());
    for request in plan.requests() {
        let made = match make(plan, request).await {
            Ok((_, reply)) => announce(plan, &reply),
            Err(error) => Err(error),
        };
        if let Err(error) = made {
            say(std::mem::replace(&mut result, Err(error)));
        }
    }
    result
}

/// Prints an error that another one takes the place of.
fn say(result: Result<(), ErrorReply>) {
    if let Err(error) = result {
        output::error(&error);
    }
}

/// Makes a mount by the daemon of its cache directory, or by a new one.
pub(super) async fn make(
    plan: &MountPlan,
    request: &MountRequest,
) -> Result<(Client, MountReply), ErrorReply> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        // One of our own would take the place of the one that its supervisor starts.
        let daemon = match Client::of_cache_again(&plan.cache.dir).await? {
            Some(client) => Launched::found(client),
            None => launch::launch(plan).await?,
        };
        check_budgets(plan, &daemon.client)?;
        match daemon.client.mount(request).await {
            Ok(reply) => return Ok((daemon.client, reply)),
            Err(error) if error.code == ErrorCode::ShuttingDown && attempt < ATTEMPTS_MAX => {}
            Err(error) => {
                daemon.settle().await;
                return Err(error);
            }
        }
    }
}

async fn foreground(plan: &MountPlan, manager: &Manager) -> Result<(), ErrorReply> {
    launch::create_cache_dir(plan)?;
    let log = plan.log_file.as_deref().map(logging::open).transpose()?;
    logging::init(log, plan.log_format, &plan.cache.dir);
    if let Some(path) = &plan.log_file {
        daemon::logs_to(path.clone());
    }
    hear_hang_ups();
    let open = |cache| async move { read_through::open(&cache).await };
    manager.status(&format!("mounting {}", plan.request.uri));
    // Else this one would take the place of the one that a supervisor starts.
    Client::of_cache_again(&plan.cache.dir).await?;
    let (cache, options) = (plan.cache.clone(), plan.daemon.clone());
    let mut running = match daemon::start(cache, options, Supervision::default(), open).await {
        Ok(running) => running,
        Err(StartError::Failed(error)) => return Err(error),
        Err(StartError::AlreadyServed(_)) => return join(plan, manager).await,
    };
    let mounted = match Client::connect(&running.socket).await? {
        Some(client) => make_all(plan, &client, &mut Vec::new()).await,
        // Interrupted already.
        None => Err(ErrorReply::new(ErrorCode::ShuttingDown, "interrupted")),
    };
    if mounted.is_ok() {
        manager.ready(&mounts_of(plan));
        let _ = running.closing.wait_for(|is_closing| *is_closing).await;
        manager.stopping();
    }
    let _ = running.finished.await;
    match mounted {
        Err(error) if error.code != ErrorCode::ShuttingDown => Err(error),
        _ => Ok(()),
    }
}

/// Stays in the foreground for mounts that another process's daemon serves.
async fn join(plan: &MountPlan, manager: &Manager) -> Result<(), ErrorReply> {
    // Before anything is announced: an interrupt must find them in place.
    let mut interrupt = Interrupt::new()?;
    let Some(client) = Client::of_cache(&plan.cache.dir).await? else {
        return Err(ErrorReply::new(ErrorCode::ShuttingDown, "the daemon ended in this moment")
            .with_hint("try again"));
    };
    check_budgets(plan, &client)?;
    let mut made = Vec::new();
    tokio::select! {
        all = make_all(plan, &client, &mut made) => {
            all?;
            manager.ready(&mounts_of(plan));
        }
        // The daemon undoes what its client no longer waits for.
        _ = interrupt.received() => return unmount_all(&made, &client).await,
    }
    let ends = plan.requests().map(|request| ended(plan, &client, request));
    tokio::select! {
        result = futures::future::try_join_all(ends) => result.map(drop),
        _ = interrupt.received() => {
            manager.stopping();
            let client = Client::of_cache(&plan.cache.dir).await?.unwrap_or(client);
            unmount_all(&made, &client).await
        }
    }
}

/// Returns once a mount has ended; the death of a daemon whose supervisor gives it back is no
/// end.
async fn ended(
    plan: &MountPlan,
    client: &Client,
    request: &MountRequest,
) -> Result<(), ErrorReply> {
    let wait = WaitRequest { dir: request.place().to_owned() };
    let mut client = client.clone();
    loop {
        match client.wait(&wait).await {
            Ok(()) => {}
            Err(error) if error.code == ErrorCode::NotMounted => return Ok(()),
            Err(error) => return Err(error),
        }
        // It may listen elsewhere.
        client = match Client::of_cache_again(&plan.cache.dir).await? {
            Some(client) => client,
            None => return Ok(()),
        };
    }
}

/// All of the mounts, or none: who stays for them would wait for a part.
async fn make_all<'a>(
    plan: &'a MountPlan,
    client: &Client,
    made: &mut Vec<&'a MountRequest>,
) -> Result<(), ErrorReply> {
    for request in plan.requests() {
        let announced = client.mount(request).await.and_then(|reply| {
            made.extend((!reply.existed).then_some(request));
            announce(plan, &reply)
        });
        if let Err(error) = announced {
            say(unmount_all(made, client).await);
            return Err(error);
        }
    }
    Ok(())
}

/// Unmounts what of this is mounted, also if it is in use.
async fn unmount_all(requests: &[&MountRequest], client: &Client) -> Result<(), ErrorReply> {
    let mut result = Ok(());
    for request in requests {
        let unmount = |lazy| UnmountRequest { dir: request.place().to_owned(), lazy };
        let mut unmounted = client.unmount(&unmount(false)).await;
        if unmounted.as_ref().is_err_and(|error| error.code == ErrorCode::Busy) {
            unmounted = client.unmount(&unmount(true)).await;
        }
        match unmounted {
            Err(error) if error.code != ErrorCode::NotMounted => result = Err(error),
            _ => {}
        }
    }
    result
}

/// A budget is the cache directory's, not a mount's, and so is where metrics are served.
fn check_budgets(plan: &MountPlan, client: &Client) -> Result<(), ErrorReply> {
    let daemon = client.daemon();
    let budgets = [
        ("--cache-size", "size", plan.cache.size, daemon.cache_size),
        ("--memory-limit", "memory limit", plan.cache.memory, daemon.memory_limit),
        ("--metadata-memory", "metadata memory", plan.cache.metadata, daemon.metadata_memory),
    ];
    for (option, what, asked, running) in budgets {
        if asked.is_some() && asked != running {
            let cache = output::short(&plan.cache.dir);
            let running = running.map_or("the default".to_owned(), format_bytes);
            let message = format!("the cache {cache} is in use with another {what}: {running}");
            return Err(ErrorReply::new(ErrorCode::Invalid, message)
                .with_hint(format!("leave out {option}, or unmount what uses it first")));
        }
    }
    let (asked, running) = (plan.daemon.metrics_listen, daemon.metrics_listen);
    if asked.is_some() && asked != running {
        let cache = output::short(&plan.cache.dir);
        let running = running.map_or("no address".to_owned(), |address| address.to_string());
        let message = format!("the daemon of {cache} serves its metrics at {running}");
        return Err(ErrorReply::new(ErrorCode::Invalid, message)
            .with_hint("leave out --metrics-listen, or unmount what uses it first"));
    }
    Ok(())
}

/// What a service manager shows of it.
fn mounts_of(plan: &MountPlan) -> String {
    let mounts = plan.requests().map(|one| match &one.dir {
        Some(dir) => format!("{} at {}", one.uri, dir.display()),
        None => one.uri.clone(),
    });
    mounts.collect::<Vec<_>>().join(", ")
}

fn announce(plan: &MountPlan, reply: &MountReply) -> Result<(), ErrorReply> {
    if plan.is_quiet {
        return Ok(());
    }
    let cache = output::short(&plan.cache.dir);
    match plan.request.dir {
        Some(_) => output::line(&format!(
            "{} mounted at {} (cache {cache})",
            reply.uri,
            reply.dir.display()
        )),
        None => output::line(&format!("{} can be read from Python (cache {cache})", reply.uri)),
    }
}
