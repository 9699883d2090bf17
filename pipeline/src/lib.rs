//! The Tradewind data plane.
