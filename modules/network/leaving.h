/* SPDX-License-Identifier: GPL-2.0-only
 *
 * Leaving: who pays for a packet that this host passes on to a neighbour. docs/architecture.md has the rules in a table.
 *
 * The neighbour pays for a packet from upstream. A packet from the mesh was paid for by its sender at the gate, unless it is
 * a return. A packet from a LAN of ours is our purchase, unless the neighbour began the flow or only the neighbour has a
 * contract.
 */
#ifndef NGP_LEAVING_H
#define NGP_LEAVING_H

#include "entries.h"
#include "lane.h"
#include "returns.h"
#include "sent.h"

/* Is a packet an answer from a service of this host, without room in its neighbour's lane? It is asked here because only the
 * outgoing frame names the neighbour. */
APART int answers_over_rate(struct __sk_buff *skb, const struct config *config, const struct packet *p)
{
	return !p->group && !p->error && is_of_host(skb, p, 0) && is_over_rate(config, p, p->bytes);
}

/* Who pays for a packet that leaves: the neighbour that receives it; we; its sender, who has paid at the gate; nobody, so it
 * is refused; or nobody, since it answers a packet that passed as one for this host (passes_as_own). */
enum payer { NEIGHBOUR_PAYS, WE_PAY, SENDER_PAID, NOBODY_PAYS, PASSES_AS_OWN };

INLINE int refuse_uncovered(void)
{
	count(UNCOVERED);
	return SHOT;
}

/* A download of a neighbour: it passes only if its own contract pays. A contract for a prefix may cover our own address, from
 * which the neighbour counts nothing: what is forwarded under it is forged (Linux accepts that over IPv6). */
INLINE int sell(const struct config *config, const struct packet *p)
{
	struct entry *entry = find_entry(config, p, SERVER, remote(p));
	struct contract *contract = contract_of(entry);

	if (!contract || (p->v6 && (config->flags & PREFIXES(SERVER, 1)) && is_ours(p, p->source) && !p->error))
		return refuse_uncovered();
	return charge(contract, entry->slot, p, FROM, SERVER) ? PASS : SHOT;
}

/* The neighbour bought a packet's source from us, and we didn't buy its destination from the neighbour. So the neighbour
 * takes the packet for a return (its own customers may have bought the same address) and never offers us a contract. We must
 * ask for one: else an address that somebody has bought could never begin a conversation. */
APART int ask_to_buy(const struct config *config, const struct packet *p)
{
	struct neighbour *neighbour = find_neighbour(p);
	struct unbought *unbought;
	struct early *early;
	struct asked key = {};

	if (!neighbour || !(neighbour->flags & SELLS_TO_US))
		return PASS;
	key.number = neighbour->number;
	__builtin_memcpy(key.address, p->destination, 16);
	early = bpf_map_lookup_elem(&ngp_early, &key);
	if (early && bpf_ktime_get_coarse_ns() - early->first_ns < EARLY_NS)
		return note_early(config, p, neighbour);
	unbought = bpf_ringbuf_reserve(&ngp_hints, sizeof(*unbought), 0);
	if (unbought) {
		unbought->kind = UNBOUGHT;
		unbought->number = neighbour->number;
		unbought->v6 = p->v6;
		__builtin_memcpy(unbought->address, p->destination, 16);
		bpf_ringbuf_submit(unbought, 0);
	}
	return note_early(config, p, neighbour);
}

/* A purchase of ours: count it at its contract, or as early bytes until there is one. Not static: see `serves`. */
__noinline int buy(const struct packet *p)
{
	const struct config *config = settings();
	struct contract *contract;
	struct entry *entry;

	if (!config || !p)
		return PASS;
	entry = find_entry(config, p, CLIENT, p->destination);
	contract = contract_of(entry);
	if (contract)
		charge(contract, entry->slot, p, TO, CLIENT);
	if (contract || (entry && entry->slot == OWN))
		return PASS;
	if ((config->flags & SELLS) && !p->error && contract_of(find_entry(config, p, SERVER, p->source)))
		return ask_to_buy(config, p);
	return note_early(config, p, find_neighbour(p));
}

/* A packet from a LAN of ours, and it isn't known who began its flow: our purchase comes before the neighbour's. Both ends
 * of a link must decide alike, and at the other end our packet meets our contract first. Returns an enum payer. */
INLINE int leave_lan(const struct config *config, const struct packet *p, const struct flow *answered)
{
	struct neighbour *neighbour = find_neighbour(p);
	struct entry *entry;

	if (!(config->flags & BUYS))
		return NEIGHBOUR_PAYS;
	entry = find_entry(config, p, CLIENT, p->destination);
	if (!contract_of(entry)) {
		if (contract_of(find_entry(config, p, SERVER, remote(p)))) {
			if (!p->error && !(entry && entry->slot == OWN))
				ask_to_buy(config, p);
			return NEIGHBOUR_PAYS;
		}
		if (neighbour && !(neighbour->flags & SELLS_TO_US))
			return NOBODY_PAYS;
	}
	remember(p, answered, 1);
	return WE_PAY;
}

/* Who pays for a packet that we pass on to a neighbour? Returns an enum payer; ngp_tc_out acts on it, since Linux 6.1 has too
 * little stack for that below this function. Not static: see `serves`. */
__noinline int find_who_pays(struct __sk_buff *skb, const struct packet *p)
{
	const struct config *config = settings();
	__u32 ingress_ifindex = skb->ingress_ifindex, *class, payer;
	struct flow answered = {};
	int began, own, from_mesh;

	if (!config || !p)
		return NOBODY_PAYS;
	class = bpf_map_lookup_elem(&ngp_interfaces, &ingress_ifindex);
	own = (config->flags & REWRITES) && is_ours(p, p->source);
	if (!own && !class)                                       /* upstream */
		return NEIGHBOUR_PAYS;
	read_answered(skb, p, &answered);
	from_mesh = class && (*class & MESH);
	began = find_payer(&answered, &payer) && payer == payer_of(find_neighbour(p));
	if (from_mesh)                                            /* if it is no return, its sender has paid at the gate */
		began |= was_return(ingress_ifindex, &answered);
	began = is_led_return(p, ingress_ifindex, AT_EGRESS, began);
	if (own && began && !from_mesh)                           /* an answer of a forwarded port */
		return PASSES_AS_OWN;
	if (!class || began)
		return NEIGHBOUR_PAYS;
	if (*class & LAN)
		return leave_lan(config, p, &answered);
	return config->flags & BUYS ? WE_PAY : SENDER_PAID;
}

#endif
