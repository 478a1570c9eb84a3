"""Rental: let subnets to tenants. A rental holds addresses, and its paid periods are contracts of kind `subnet`."""
