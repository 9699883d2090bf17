//! tradewind
fn main() {}
