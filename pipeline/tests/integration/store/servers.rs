//! Real servers. Placeholder until filled below.
