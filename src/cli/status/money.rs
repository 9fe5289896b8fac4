//! What requests and bytes cost, by the prices that the user gives.

use std::str::FromStr;

use serde::Serialize;

use crate::control::wire::StatusReply;

/// Bytes of a GB, as the clouds bill egress.
const GB: f64 = (1_u64 << 30) as f64;

/// Requests that prices are for. Price lists give them for 1,000 or 10,000; by the million
/// they are numbers that one can type.
const MILLION: f64 = 1e6;

/// `--cost`, in USD.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Cost {
    /// For a GB out of the store.
    egress: f64,
    /// For a million GETs and HEADs.
    get: f64,
    /// For a million LISTs.
    list: f64,
}

/// What was spent and saved since the daemon started.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Money {
    /// For bytes and requests.
    pub(super) spent_usd: f64,
    /// What the bytes would have cost that were read and not downloaded.
    pub(super) saved_usd: f64,
    /// These bytes.
    pub(super) saved_bytes: u64,
}

impl Cost {
    pub(super) fn of(&self, status: &StatusReply) -> Money {
        let remote = &status.remote;
        let gets = (remote.get.requests + remote.head.requests) as f64 / MILLION;
        let lists = remote.list.requests as f64 / MILLION;
        let egress = remote.get.bytes as f64 / GB;
        let saved_bytes = saved_bytes(status);
        Money {
            spent_usd: egress * self.egress + gets * self.get + lists * self.list,
            saved_usd: saved_bytes as f64 / GB * self.egress,
            saved_bytes,
        }
    }
}

/// Bytes that were read and did not have to be downloaded for it. What was fetched ahead is
/// read from the cache and was paid for, so it is not what is read from there.
pub(super) fn saved_bytes(status: &StatusReply) -> u64 {
    let read = status.reads.hit_bytes.saturating_add(status.reads.miss_bytes);
    read.saturating_sub(status.remote.get.bytes)
}

/// A sum of money, with as many digits as small ones need.
pub(super) fn usd(sum: f64) -> String {
    if sum == 0.0 || sum >= 0.995 { format!("${sum:.2}") } else { format!("${sum:.4}") }
}

impl FromStr for Cost {
    type Err = String;

    fn from_str(text: &str) -> Result<Cost, String> {
        let wrong = || {
            format!("{text:?} is not a list of prices in USD, such as egress=0.09,get=0.4,list=5")
        };
        let mut cost = Cost::default();
        for part in text.split(',') {
            let (name, price) = part.trim().split_once('=').ok_or_else(wrong)?;
            let price: f64 = price.trim().parse().map_err(|_| wrong())?;
            if !(price.is_finite() && price >= 0.0) {
                return Err(wrong());
            }
            match name.trim() {
                "egress" => cost.egress = price,
                "get" => cost.get = price,
                "list" => cost.list = price,
                _ => return Err(wrong()),
            }
        }
        Ok(cost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_checked() {
        let cost: Cost = "egress=0.09, get=0.4,list=5".parse().unwrap();
        assert_eq!(cost, Cost { egress: 0.09, get: 0.4, list: 5.0 });
        for wrong in ["", "egress", "egress=", "egress=x", "get=-1", "get=inf", "get=nan", "put=5"]
        {
            assert!(wrong.parse::<Cost>().unwrap_err().contains("egress=0.09"), "{wrong}");
        }
    }

    crate::fuzz::fuzz_tests!(prices);

    /// `--cost`: what is taken are prices, and none of them makes a sum that is none.
    fn prices(effort: crate::fuzz::Effort) {
        let target = crate::fuzz::Target {
            name: "--cost",
            corpus: ["egress=0.09,get=0.4,list=5", "get=1e3", "list=0"].map(Vec::from).to_vec(),
            words: &["=", ",", "egress", "get", "list", "-", "nan", "inf", "1e308", "e", "."],
            inputs: 2_000,
            memory: (64 << 10, 64),
        };
        target.run(effort, |input| match String::from_utf8_lossy(input).parse::<Cost>() {
            Ok(Cost { egress, get, list }) => {
                assert!([egress, get, list].iter().all(|price| price.is_finite() && *price >= 0.0));
                true
            }
            Err(error) => {
                assert!(error.contains("egress=0.09"), "{error}");
                false
            }
        });
    }

    #[test]
    fn small_sums_are_shown() {
        assert_eq!(usd(0.0), "$0.00");
        assert_eq!(usd(0.0004), "$0.0004");
        assert_eq!(usd(12.345), "$12.35");
    }
}
