/* SPDX-License-Identifier: GPL-2.0-only
 *
 * Entries: find the contract that covers a packet, by the neighbour's link and the destination; and count early bytes,
 * which are bytes that we send to a seller before there is a contract. A tenant's contract is for the tenant's own
 * networks, with a link of zeroes and the number TENANTS.
 */
#ifndef NGP_ENTRIES_H
#define NGP_ENTRIES_H

#include "packet.h"

#define PASS (-1)                                             /* TC_ACT_UNSPEC, TCX_NEXT: the next program decides */
#define SHOT 2
#define EARLY_NS 3000000000ull                                /* a seller may hold first packets for this time */

APART struct entry *find_prefix(const struct packet *p, enum role role, const __u32 *address)
{
	struct neighbour *neighbour;
	__u32 who = TENANTS;

	if (p->link.ifindex) {
		neighbour = find_neighbour(p);
		if (!neighbour)
			return 0;
		who = neighbour->number | (__u32)role << 31;
	}
	if (p->v6) {
		struct prefix6 key = { .bits = 160, .who = who };

		__builtin_memcpy(key.address, address, 16);
		return bpf_map_lookup_elem(&ngp_prefixes6, &key);
	} else {
		struct prefix4 key = { .bits = 64, .who = who, .address = { address[0] } };

		return bpf_map_lookup_elem(&ngp_prefixes4, &key);
	}
}

INLINE struct entry *find_entry(const struct config *config, const struct packet *p, enum role role, const __u32 *address)
{
	struct entry *entry;

	if (p->v6) {
		struct host6 key = { .link = p->link };

		key.link.mac_tail_role |= pair(0, role);
		__builtin_memcpy(key.address, address, 16);
		entry = bpf_map_lookup_elem(&ngp_hosts6, &key);
		/* Else clang merges the two look-ups into one whose map isn't constant, and the verifier refuses that. */
		barrier_var(entry);
	} else {
		struct host4 key = { .link = p->link, .address = { address[0] } };

		key.link.mac_tail_role |= pair(0, role);
		entry = bpf_map_lookup_elem(&ngp_hosts4, &key);
		barrier_var(entry);
	}
	if (!entry && (config->flags & PREFIXES(role, p->v6)))
		entry = find_prefix(p, role, address);
	return entry;
}

/* Return the contract of an entry. Slots are used again. So the generations of entry and slot must be equal: if another
 * contract got the slot after this entry was read, this packet must not be charged to that contract. */
INLINE struct contract *contract_of(struct entry *entry)
{
	struct contract *contract;
	__u64 tag;

	if (!entry)
		return 0;
	contract = bpf_map_lookup_elem(&ngp_contracts, &entry->slot);
	if (!contract)
		return 0;
	tag = ONCE(contract->tag);
	return (tag & VALID) && GENERATION(tag) == entry->generation ? contract : 0;
}

/* Is this the contract for a default route? */
INLINE int is_for_default(const struct contract *contract)
{
	return contract && (ONCE(contract->tag) & DEFAULT_ROUTE);
}

/* Does user space say that packets to an address go another way than by the default route that we buy, or at another
 * price? (`SetElsewhere` in ngp/core/effects.py) */
APART int is_elsewhere(const struct packet *p, const __u32 *address)
{
	if (p->v6) {
		struct free6 key = { .bits = 128 };

		__builtin_memcpy(key.address, address, 16);
		return bpf_map_lookup_elem(&ngp_elsewhere6, &key) != 0;
	} else {
		struct free4 key = { .bits = 32, .address = { address[0] } };

		return bpf_map_lookup_elem(&ngp_elsewhere4, &key) != 0;
	}
}

/* Does a neighbour's contract cover a packet that goes on to the mesh, or comes from there? That for a default route
 * covers what goes upstream or to a LAN of ours, and what comes from there. What goes to the mesh may cost us more, as
 * we may have to buy it. So it is covered only if we resell a default route that we buy from a neighbour, and the far
 * end isn't elsewhere. All other packets need a contract of their own, whose prefix is longer. */
INLINE int covers_mesh(const struct contract *contract, const struct packet *p, const __u32 *far_end)
{
	__u64 tag = ONCE(contract->tag);

	return !(tag & DEFAULT_ROUTE) || ((tag & RESOLD) && !is_elsewhere(p, far_end));
}

/* Return the contract by which a neighbour pays for what it sends; 0 if it has none that covers the packet. */
INLINE struct contract *senders_contract(struct entry *entry, const struct packet *p, int to_mesh)
{
	struct contract *contract = contract_of(entry);

	return contract && to_mesh && !covers_mesh(contract, p, p->destination) ? 0 : contract;
}

/* Count early bytes. The seller holds the first few packets that we send before a contract covers them, and charges
 * them when a contract lets them go. So count as many packets in each window as the seller holds. A buyer that has
 * paid gets more packets held; if we have paid, count that many, although the seller may not have seen the payment
 * yet. User space begins the contract with these bytes (early.py). */
APART int note_early(const struct config *config, const struct packet *p, const struct neighbour *neighbour)
{
	struct early *early, fresh = { .packets = 1, .bytes = p->bytes };
	struct asked key = {};
	__u64 now;

	if (!neighbour || !(neighbour->flags & SELLS_TO_US))
		return PASS;
	key.number = neighbour->number;
	__builtin_memcpy(key.address, p->destination, 16);
	now = bpf_ktime_get_coarse_ns();
	early = bpf_map_lookup_elem(&ngp_early, &key);
	if (!early || now - early->first_ns >= EARLY_NS) {
		fresh.first_ns = fresh.since_ns = now;
		bpf_map_update_elem(&ngp_early, &key, &fresh, BPF_ANY);
		return PASS;
	}
	if (now - early->since_ns >= config->hold_window_ns) {
		early->since_ns = now;
		early->packets = 0;
	}
	if (early->packets < (neighbour->flags & WAS_PAID ? config->hold_packets_paid : config->hold_packets)) {
		__sync_fetch_and_add(&early->packets, 1);
		__sync_fetch_and_add(&early->bytes, p->bytes);
	}
	return PASS;
}

#endif
