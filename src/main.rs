//! The `warmfs` command.

fn main() {
    println!("warmfs {}", env!("CARGO_PKG_VERSION"));
}
