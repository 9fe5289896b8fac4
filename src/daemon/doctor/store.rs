//! The store that a URI names: found, reached, listed and read, as a mount does it.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::net::lookup_host;
use tokio::time::timeout;

use super::{Finding, Level};
use crate::admission::Class;
use crate::config::{CallerEnv, RemoteOptions};
use crate::metrics::RemoteMetrics;
use crate::remote::client::RemoteClient;
use crate::remote::reach::{self, Reach};
use crate::remote::{self, ListRequest, ObjectMeta, RemoteError, RemoteUri};
use crate::units::format_bytes;

/// Time for all of it. A mount may take longer; who asks a doctor is waiting.
const TOTAL_LIMIT: Duration = Duration::from_secs(60);

/// Time for a name to be resolved: resolvers give up after 5 s with each server.
const DNS_LIMIT: Duration = Duration::from_secs(10);

/// How far clocks may be apart before the signed requests of AWS and Azure are refused.
/// <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>, RequestTimeTooSkewed
const SKEW_LIMIT: Duration = Duration::from_secs(15 * 60);

/// What no clock that is set by a network is off by. A tenth of the limit.
const SKEW_USUAL: Duration = Duration::from_secs(90);

/// Bytes of the one GET: enough to see a rate, and no more than a small fee.
const GET_BYTES: u64 = 4 << 20;

pub(super) async fn look(
    uri: &str,
    options: &RemoteOptions,
    env: &CallerEnv,
    tell: &mut (dyn FnMut(Finding) + Send),
) {
    let uri: RemoteUri = match uri.parse() {
        Ok(uri) => uri,
        Err(error) => {
            return tell(Finding::new("uri", Level::Fail, error.to_string()));
        }
    };
    if timeout(TOTAL_LIMIT, look_at(&uri, options, env, tell)).await.is_err() {
        let message = format!("no end after {} s", TOTAL_LIMIT.as_secs());
        tell(Finding::fail("time", message, "see the lines above for what is slow"));
    }
}

async fn look_at(
    uri: &RemoteUri,
    options: &RemoteOptions,
    env: &CallerEnv,
    tell: &mut (dyn FnMut(Finding) + Send),
) {
    match Reach::find(uri, options, env).await {
        Ok(Some(reach)) => way(&reach, tell).await,
        Ok(None) => {}
        Err(error) => return tell(refused("endpoint", &error)),
    }
    match reach::credentials(uri, options, env).await {
        Ok(source) if source.is_empty() => {
            let message = "none are configured; the machine may have some, or the data is public";
            tell(Finding::ok("credentials", message));
        }
        Ok(source) => tell(Finding::ok("credentials", source)),
        Err(error) => return tell(refused("credentials", &error)),
    }
    let metrics = Arc::<RemoteMetrics>::default();
    let start = Instant::now();
    let remote = match remote::connect(uri, options, env, &metrics).await {
        Ok(remote) => remote,
        Err(error) => return tell(refused("connect", &error)),
    };
    tell(
        Finding::ok("connect", format!("{} in {}", uri, shown(start.elapsed())))
            .taking(start.elapsed()),
    );
    let client = Arc::new(RemoteClient::new(remote, metrics));
    let Some(object) = list(&client, uri, tell).await else { return };
    get(&client, object, tell).await;
}

/// The network up to the store. Each of these may be wrong by itself.
async fn way(reach: &Reach, tell: &mut (dyn FnMut(Finding) + Send)) {
    tell(Finding::ok("endpoint", reach.url()));
    match reach.proxy() {
        Some(variable) => {
            tell(Finding::ok("proxy", format!("the one of {variable}, which resolves names too")));
        }
        None => {
            tell(Finding::ok("proxy", "none"));
            tell(resolve(reach).await);
        }
    }
    answer(reach, tell).await;
}

async fn resolve(reach: &Reach) -> Finding {
    let (host, start) = (reach.host(), Instant::now());
    let found = timeout(DNS_LIMIT, lookup_host((host, reach.port()))).await;
    let took = start.elapsed();
    let why = match found {
        Ok(Ok(addresses)) => match addresses.count() {
            0 => "it has no address".to_owned(),
            1 => {
                return Finding::ok("dns", format!("{host}: 1 address in {}", shown(took)))
                    .taking(took);
            }
            count => {
                let message = format!("{host}: {count} addresses in {}", shown(took));
                return Finding::ok("dns", message).taking(took);
            }
        },
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", DNS_LIMIT.as_secs()),
    };
    let hint = "check the name, and the name servers in /etc/resolv.conf";
    Finding::fail("dns", format!("{host}: {why}"), hint).taking(took)
}

/// Whether anybody answers, and what time it is there.
async fn answer(reach: &Reach, tell: &mut (dyn FnMut(Finding) + Send)) {
    let start = Instant::now();
    let there = match reach.date().await {
        Ok(there) => there,
        Err(error) => return tell(refused("answer", &error)),
    };
    let took = start.elapsed();
    tell(Finding::ok("answer", format!("it answers, in {}", shown(took))).taking(took));
    tell(match there {
        // It was that time there in between, and its second was not over.
        Some(there) => skew(SystemTime::now() - took / 2, there + Duration::from_millis(500)),
        None => Finding::ok("clock", "the store does not tell the time"),
    });
}

fn skew(here: SystemTime, there: SystemTime) -> Finding {
    let (off, is_ahead) = match here.duration_since(there) {
        Ok(ahead) => (ahead, true),
        Err(behind) => (behind.duration(), false),
    };
    let seconds = off.as_secs_f64() * if is_ahead { 1.0 } else { -1.0 };
    let side = if is_ahead { "ahead of" } else { "behind" };
    let message = format!("{:.0} s {side} the store's", off.as_secs_f64());
    let hint = "set it: `timedatectl set-ntp true`, or the clock of the host";
    let finding = if off >= SKEW_LIMIT {
        Finding::fail("clock", format!("{message}: signed requests are refused"), hint)
    } else if off >= SKEW_USUAL {
        Finding::warn("clock", message, hint)
    } else {
        match off.as_secs() {
            0..=2 => Finding::ok("clock", "within a second or two of the store's"),
            _ => Finding::ok("clock", message),
        }
    };
    Finding { seconds: Some(seconds), ..finding }
}

/// One LIST; the largest object of its page.
async fn list(
    client: &RemoteClient,
    uri: &RemoteUri,
    tell: &mut (dyn FnMut(Finding) + Send),
) -> Option<ObjectMeta> {
    let prefix = uri.prefix().to_owned();
    let request = ListRequest { prefix, recursive: true, ..ListRequest::default() };
    let start = Instant::now();
    let page = match client.list(&request).await {
        Ok(page) => page,
        Err(error) => {
            tell(refused("list", &error));
            return None;
        }
    };
    let took = start.elapsed();
    let more = if page.next.is_some() { " and more" } else { "" };
    let message = format!("{}{more} in {}", objects(page.objects.len()), shown(took));
    let largest = page.objects.into_iter().filter(|o| o.size > 0).max_by_key(|o| o.size);
    match &largest {
        Some(_) => tell(Finding::ok("list", message).taking(took)),
        None => {
            let hint = "check the prefix: upper and lower case count";
            tell(Finding::fail("list", format!("{message}: nothing to read there"), hint));
        }
    }
    largest
}

/// One ranged GET.
async fn get(
    client: &Arc<RemoteClient>,
    object: ObjectMeta,
    tell: &mut (dyn FnMut(Finding) + Send),
) {
    let wanted = object.size.min(GET_BYTES);
    let start = Instant::now();
    let mut reader = client.get_range(object, 0..wanted, Class::Demand);
    let (mut first, mut bytes) = (None, 0);
    loop {
        match reader.next().await {
            Ok(Some(part)) => {
                first.get_or_insert_with(|| start.elapsed());
                bytes += part.len() as u64;
            }
            Ok(None) => break,
            Err(error) => return tell(refused("get", &error)),
        }
    }
    let (took, first) = (start.elapsed(), first.unwrap_or_default());
    // Of one connection, and with the time to the first byte in it.
    let rate = bytes as f64 / took.as_secs_f64().max(f64::MIN_POSITIVE);
    let message = format!(
        "first byte after {}; {} at {:.1} MiB/s by one request",
        shown(first),
        format_bytes(bytes),
        rate / f64::from(1 << 20),
    );
    tell(Finding { bytes_per_second: Some(rate), ..Finding::ok("get", message).taking(first) });
}

fn refused(check: &'static str, error: &RemoteError) -> Finding {
    Finding::new(check, Level::Fail, error.to_string())
}

fn objects(count: usize) -> String {
    if count == 1 { "1 object".to_owned() } else { format!("{count} objects") }
}

fn shown(time: Duration) -> String {
    match time.as_millis() {
        0 => "less than 1 ms".to_owned(),
        1..1_000 => format!("{} ms", time.as_millis()),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_off_by_what_a_store_refuses() {
        let now = SystemTime::now();
        for (seconds, level, word) in [
            (0, Level::Ok, "within"),
            (2, Level::Ok, "within"),
            (89, Level::Ok, "89 s behind"),
            (91, Level::Warn, "91 s behind"),
            (901, Level::Fail, "refused"),
        ] {
            let finding = skew(now, now + Duration::from_secs(seconds));
            assert_eq!(finding.level, level, "{finding:?}");
            assert!(finding.message.contains(word), "{finding:?}");
        }
        let ahead = skew(now + Duration::from_secs(100), now);
        assert!(ahead.message.contains("100 s ahead") && ahead.seconds == Some(100.0));
    }
}
