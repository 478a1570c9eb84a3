"""Loader: turns a file into Settings, or into one error that lists all problems of the file.

All problems are reported together, as nobody wants to correct a distant router's file one line at a time. Nothing is
guessed: a file with one bad line is refused as a whole, at start and at reload.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from operator import attrgetter
from pathlib import Path
from typing import Any

from ngp.config import keys, landlord_keys
from ngp.config.checks import complete_rule, general_prices, run_checks
from ngp.config.document import (
    NOT_SHOWN,
    Entries,
    Finding,
    Node,
    Refused,
    Scalar,
    parse_document,
    read_text,
    refuse_readable,
    shipped,
    show,
    show_text,
)
from ngp.config.key import Key
from ngp.config.landlord import letting_settings
from ngp.config.modules import GROUPS, SHIPPED, installed_modules, module_settings, usable_settings
from ngp.config.tenant import tenant_settings
from ngp.config.written import Modules, Written
from ngp.core.settings import Budgets, ModuleId, Settings
from ngp.errors import ConfigError
from ngp.module_keys import ModuleSettings

DEFAULT_PATHS = (Path("/etc/ngp/net.conf"), Path("net.conf"))
_MOST_PROBLEMS = 30
_SECRET = re.compile("macaroon|password|passphrase|secret|seed|token|private|credential", re.IGNORECASE)
_KEYS_BY_NAME = {key.name: key for key in keys.KEYS}
_SHOWN = {key.name for key in keys.KEYS if not key.secret}
"""The keys whose bad values errors may show. A module's key isn't one: its value may be a secret, or look like one that
was meant for another key."""


def default_path(candidates: Sequence[Path] = DEFAULT_PATHS) -> Path:
    """Return the first configuration file that exists, readable or not: an unreadable one isn't silently skipped.

    Raises:
        ConfigError: none exists; lists the places.
    """
    for candidate in candidates:
        if os.path.lexists(candidate):
            return candidate
    places = " nor ".join(str(candidate.absolute()) for candidate in candidates)
    raise ConfigError(f"no configuration: neither {places} exists: copy {shipped('net.conf')} there, or use --config")


def _status(path: Path) -> os.stat_result:
    try:
        return os.stat(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{show_text(str(path))}: can't be examined: {error}") from error


def refuse_shown_secret(settings: Settings, path: Path) -> None:
    """Refuse a file that has a secret in it and that users other than its owner can read.

    Raises:
        ConfigError: with the command that mends it.
    """
    for own in keys.KEYS:
        if own.secret and attrgetter(own.fields[0])(settings) is not None:
            refuse_readable(path, _status(path), own.name, own.secret)
    for (group, name), given in settings.modules.items():
        for key in module_settings(group, name).keys:
            if key.secret and key.name in given:
                refuse_readable(path, _status(path), key.name, key.secret, key.instead)


def load(
    path: Path | str, *, modules: Modules = installed_modules, trusted_only: bool = False, for_daemon: bool = True
) -> Settings:
    """Read a configuration file.

    Args:
        path: the file; relative paths in it start at its folder.
        modules: returns the names of the modules that are available for a group of entry points.
        trusted_only: refuse a file that other users could have written.
        for_daemon: refuse a file with which no daemon could run. A machine that only rents needs no daemon.

    Raises:
        ConfigError: lists all problems, one per line: file, line, key, value, and what is right.
    """
    path = Path(path)
    return parse(read_text(path, trusted_only), path, modules=modules, for_daemon=for_daemon)


def parse(text: str, path: Path, *, modules: Modules = installed_modules, for_daemon: bool = True) -> Settings:
    """Turn a configuration's text into Settings.

    Args:
        path: only the file's name for errors; relative paths in the text start at its directory.
        for_daemon: as in `load`.
    Raises: ConfigError.
    """
    try:
        document = parse_document(text)
    except Refused as refused:
        raise ConfigError(_report(refused.findings, path)) from refused
    written, findings = _read_keys(document, os.path.abspath(path.parent), modules)
    findings.extend(run_checks(written, for_daemon))
    if findings:
        raise ConfigError(_report(findings, path))
    return _settings(written)


def _report(findings: Sequence[Finding], path: Path) -> str:
    ordered = sorted(findings, key=lambda finding: finding.line)
    lines = [finding.text(str(path)) for finding in ordered[:_MOST_PROBLEMS]]
    if len(ordered) > _MOST_PROBLEMS:
        lines.append(f"{path}: and {len(ordered) - _MOST_PROBLEMS} more")
    return "\n".join(lines)


def _read_keys(document: Entries, folder: str, modules: Modules) -> tuple[Written, list[Finding]]:
    nodes: dict[str, Node] = {}
    parsed: dict[str, Any] = {}
    findings: list[Finding] = []
    failed: set[str] = set()
    brought = _all_brought(modules) if any(key.text not in _KEYS_BY_NAME for key, _ in document.pairs) else {}
    known = {**_KEYS_BY_NAME, **_as_keys(brought.values(), folder)}
    for key, node in document.pairs:
        if key.text in nodes:
            first = f"is given twice, first in line {nodes[key.text].line}: keep one of the two"
            value = show(node) if key.text in _SHOWN else NOT_SHOWN
            findings.append(Finding(key.line, key.text, value, first))
            failed.add(key.text)
        elif key.text not in known:
            findings.append(_unknown(key, node, known if len(findings) < _MOST_PROBLEMS else ()))
        else:
            nodes[key.text] = node
            try:
                parsed[key.text] = known[key.text].parse(node)
            except Refused as refused:
                findings.extend(Finding(each.line, key.text, each.value, each.message) for each in refused.findings)
                failed.add(key.text)
                if refused.readable is not None:
                    parsed[key.text] = refused.readable
    written = Written(parsed, nodes, failed, modules, brought, folder)
    for key_of_choice, module in written.chosen():
        try:
            brought[module] = module_settings(*module)
        except ConfigError as error:
            findings.append(written.finding(key_of_choice, f"can't be used: {error}"))
    return written, findings


def _all_brought(modules: Modules) -> dict[ModuleId, ModuleSettings]:
    return dict(usable_settings({group: modules(group) for group in GROUPS}))


def _as_keys(brought: Iterable[ModuleSettings], folder: str) -> dict[str, Key[Any]]:
    return {key.name: keys.of_module(key, folder) for one in brought for key in one.keys}


def _unknown(key: Scalar, node: Node, known: Collection[str]) -> Finding:
    """Return the finding for an unknown key, with the most similar known key. Args: known: keys to compare with."""
    name = key.text if key.text.isidentifier() and key.text.isascii() and len(key.text) <= 40 else show_text(key.text)
    near = get_close_matches(key.text.upper(), known, 1) if len(key.text) <= 40 else []
    keys_are_in = shipped("docs/operators-guide.md")
    remedy = f"did you mean {near[0]}?" if near else f"{keys_are_in} lists the keys; remove the line"
    # an unknown key's value may be a secret, and messages end in logs
    perhaps_secret = bool(near) and near[0] not in _SHOWN
    value = NOT_SHOWN if perhaps_secret or _SECRET.search(key.text) else show(node)
    return Finding(key.line, name, value, f"is for a key that net.conf doesn't have: {remedy}")


def shipped_keys() -> tuple[Key[Any], ...]:
    """Return ngp's own keys and those of its shipped modules, in the order of the guide."""
    brought = [module_settings(group, name) for group in GROUPS for name in SHIPPED[group]]
    return (*keys.KEYS, *_as_keys(brought, "/").values())


def _settings(written: Written) -> Settings:
    prices = general_prices(written)
    return Settings(
        link_modules=written[keys.LINK_INTERFACE],
        network_module=written[keys.NETWORK_INTERFACE],
        payment_module=written[keys.PAYMENT_INTERFACE],
        mesh_interfaces=written[keys.MESH_INTERFACES] if keys.MESH_INTERFACES.name in written.nodes else (),
        ignore_interfaces=written[keys.IGNORE_INTERFACE],
        lan_interfaces=written[keys.LAN_INTERFACE],
        ngp_addresses=written[keys.NGP_INTERFACE],
        account_id=written[keys.ACCOUNT_ID],
        csv_delay_blocks=written[keys.CSV_DELAY],
        sells=written[keys.SELL],
        buys=written[keys.BUY],
        default_msat_per_gib=written[keys.DEFAULT_PRICE],
        sell_msat_per_gib=prices.sell,
        sell_min_msat_per_gib=prices.sell_min,
        buy_msat_per_gib=prices.buy,
        buy_max_msat_per_gib=prices.buy_max,
        resale_margin=written[keys.RESALE_MARGIN],
        load_price=written[keys.SELL_PRICE_LOAD],
        prices=tuple(complete_rule(entry.rule, prices) for entry in written[keys.PRICES]),
        contract_data_bytes=written[keys.CONTRACT_DATA],
        contract_time_s=written[keys.CONTRACT_TIME],
        data_renewal_bytes=written[keys.DATA_RENEWAL],
        time_renewal_s=written[keys.TIME_RENEWAL],
        payment_amount_msat=written[keys.PAYMENT_AMOUNT],
        trust_amount_msat=written[keys.TRUST_AMOUNT],
        grace_data_bytes=written[keys.GRACE_DATA],
        grace_time_s=written[keys.GRACE_TIME],
        refund_when_asked=written[keys.REFUND_WHEN_ASKED],
        budgets=_budgets(written),
        fee_limit=written[keys.FEE_LIMIT],
        verify_tolerance_ppm=written[keys.VERIFY_TOLERANCE],
        free_destinations=written[keys.FREE_DESTINATIONS],
        payment_services=written[keys.PAYMENT_SERVICES],
        payment_services_bytes_s=written[keys.PAYMENT_SERVICES_RATE],
        unpaid_bytes_s=written[keys.UNPAID_RATE],
        closed_when_stopped=written[keys.WHEN_STOPPED] == "closed",
        queue_number=written[keys.QUEUE_NUMBER],
        state_dir=os.path.normpath(os.path.join(written.folder, written[keys.STATE_DIR])),
        contracts_max=written[keys.CONTRACTS_MAX],
        modules={module: given for module in written.brought if (given := written.of_module(module))},
        buys_default_route=written[keys.BUY_DEFAULT_ROUTE],
        choose_routes=written[keys.CHOOSE_ROUTES],
        route_table=written[keys.ROUTE_TABLE],
        route_priority=written[keys.ROUTE_PRIORITY],
        letting=letting_settings(written),
        tenant=tenant_settings(written),
        ledger=written[landlord_keys.LEDGER],
    )


def _budgets(written: Written) -> Budgets:
    return Budgets(
        written[keys.BUDGET_PAYMENT],
        written[keys.BUDGET_NEIGHBOUR],
        written[keys.BUDGET_HOUR],
        written[keys.BUDGET_DAY],
        written[keys.BUDGET_TOTAL],
    )
