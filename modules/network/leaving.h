/* SPDX-License-Identifier: GPL-2.0-only
 *
 * Leaving: who pays for a packet that this host passes on to a neighbour. docs/architecture.md has the rules in a
 * table.
 *
 * For a packet from upstream, the neighbour pays. For a packet from the mesh, its sender has paid at the gate, unless
 * the packet is a return; then the neighbour pays. A packet from a LAN of ours is our purchase, unless the neighbour
 * began the flow, or only the neighbour has a contract for it.
 */
#ifndef NGP_LEAVING_H
#define NGP_LEAVING_H

#include "entries.h"
#include "lane.h"
#include "returns.h"
#include "sent.h"
#include "unpaid.h"

/* If a packet is an answer from a payment service on this host, take room for it in the lane of the neighbour that
 * receives it. Returns 1 if the lane has no room. Call this only at egress: there the frame names the neighbour. */
APART int answers_over_rate(struct __sk_buff *skb, const struct config *config, const struct packet *p)
{
	return !p->group && !p->error && is_of_host(skb, p, 0) && is_over_rate(config, p, p->bytes);
}

/* Who pays for a packet that leaves, in the order below: the neighbour that receives it; we; its sender, who has paid
 * at the gate; nobody, so the packet is refused; nobody at this host, because it is an answer of a forwarded port
 * (passes_as_own) and leaves like a packet of our own (send_own). */
enum payer { NEIGHBOUR_PAYS, WE_PAY, SENDER_PAID, NOBODY_PAYS, PASSES_AS_OWN };

INLINE int refuse_uncovered(void)
{
	count(UNCOVERED);
	return SHOT;
}

/* May a packet be one of the mesh? Linux forgets where some fragments came from (see is_made_here). */
APART int may_be_from_mesh(struct __sk_buff *skb)
{
	return !skb->ingress_ifindex || (class_of(skb->ingress_ifindex) & MESH);
}

/* Count a refused download that its receiver hasn't bought. If it came from the mesh, it is a return, for which we have
 * paid, and user space bounds that loss: for each purchase of ours (ngp/core/losses.py), and for all default routes
 * together (default_resale.py). So find the purchase to which the packet was counted at ingress; the id is in its label.
 * What arrives after we have ended the purchase isn't counted there. */
APART int count_unsold(struct __sk_buff *skb, const struct packet *p)
{
	const struct config *config = settings();
	__u64 *known, bytes = p->bytes;
	struct contract *contract;
	struct packet came = {};
	struct contract_id id;
	struct entry *entry;
	struct label *label;

	if (!config || !(class_of(skb->ingress_ifindex) & MESH))
		return 0;
	count_by(UNSOLD_BYTES, bytes);
	if (!find_sender(skb->ingress_ifindex, p, &came.link))
		return 0;
	came.v6 = p->v6;
	entry = find_entry(config, &came, CLIENT, remote(p));
	contract = contract_of(entry);
	if (!contract || (ONCE(contract->tag) & BLOCKED))
		return 0;
	label = bpf_map_lookup_elem(&ngp_labels, &entry->slot);
	if (!label)
		return 0;
	id.word[0] = label->word[0];
	id.word[1] = label->word[1];
	known = bpf_map_lookup_elem(&ngp_unsold, &id);
	if (known)
		__sync_fetch_and_add(known, bytes);
	else
		bpf_map_update_elem(&ngp_unsold, &id, &bytes, BPF_NOEXIST);
	return 0;
}

/* Let a download of a neighbour pass if the neighbour's contract covers and pays for it, or by UNPAID_RATE. A
 * neighbour's contract for a prefix may include an address of this host. But a packet that is forwarded with such a
 * source is forged (Linux accepts that over IPv6), and the neighbour counts nothing from there. So it is refused. */
INLINE int sell(struct __sk_buff *skb, const struct config *config, const struct packet *p)
{
	struct entry *entry = find_entry(config, p, SERVER, remote(p));
	struct contract *contract = contract_of(entry);

	if (contract && may_be_from_mesh(skb) && !covers_mesh(contract, p, remote(p)))
		contract = 0;
	if (p->v6 && (config->flags & PREFIXES(SERVER, 1)) && is_ours(p, p->source) && !p->error)
		contract = 0;
	if ((contract && charge(contract, entry->slot, p, FROM, SERVER)) || passes_unpaid(skb, p))
		return PASS;
	if (!contract || (ONCE(contract->tag) & BLOCKED))         /* blocked: for example, its price was refused */
		count_unsold(skb, p);
	return contract ? SHOT : refuse_uncovered();
}

/* Ask the daemon to buy a packet's destination. The neighbour has bought the packet's source from us, so its gate takes
 * the packet for a return, and the neighbour will never offer us a contract for the destination. If we didn't ask for a
 * contract, a host whose address somebody has bought could never begin a conversation. */
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

/* Count a packet that is a purchase of ours: at its contract, or as early bytes if no contract covers it. That of a
 * contract that is used up or over counts as early too: if our daemon is away, the server ends such a contract, holds
 * the next packets, and charges them to the contract that our daemon buys when it is back. Not static: see `serves`. */
__noinline int buy(const struct packet *p)
{
	const struct config *config = settings();
	struct contract *contract;
	struct entry *entry;

	if (!config || !p)
		return PASS;
	entry = find_entry(config, p, CLIENT, p->destination);
	contract = contract_of(entry);
	if ((contract && charge(contract, entry->slot, p, TO, CLIENT)) || (entry && entry->slot == OWN))
		return PASS;
	if (!contract && (config->flags & SELLS) && !p->error && contract_of(find_entry(config, p, SERVER, p->source)))
		return ask_to_buy(config, p);
	return note_early(config, p, find_neighbour(p));
}

/* Find out who pays for a packet from a LAN of ours whose flow isn't known, and remember the flow if we pay. If both we
 * and the neighbour have a contract for the packet, ours counts. Both ends of a link must decide alike, and at the
 * other end our packet meets our contract first. If only the neighbour has a contract, the neighbour pays, and the
 * daemon is asked to buy the destination. Returns an enum payer. */
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

/* Find out who pays for a packet that we pass on to a neighbour. Returns an enum payer. The caller then counts or
 * charges the packet: in Linux 6.1 the stack is too small to call `buy` and `sell` from here. Not static: see
 * `serves`. */
__noinline int find_who_pays(struct __sk_buff *skb, const struct packet *p)
{
	const struct config *config = settings();
	__u32 ingress_ifindex = skb->ingress_ifindex, class, payer;
	struct flow answered = {};
	int began, own, from_mesh;

	if (!config || !p)
		return NOBODY_PAYS;
	class = class_of(ingress_ifindex);
	own = (config->flags & REWRITES) && is_ours(p, p->source);
	if (!own && !class)                                       /* upstream */
		return NEIGHBOUR_PAYS;
	read_answered(skb, p, &answered);
	from_mesh = class & MESH;
	began = find_payer(&answered, &payer) && payer == payer_of(find_neighbour(p));
	if (from_mesh)                                            /* if no return, its sender has paid at the gate */
		began |= was_return(ingress_ifindex, &answered);
	began = is_led_return(p, ingress_ifindex, AT_EGRESS, began);
	if (own && began && !from_mesh)                           /* an answer of a forwarded port */
		return PASSES_AS_OWN;
	if (!class || began)
		return NEIGHBOUR_PAYS;
	if (class & LAN)
		return leave_lan(config, p, &answered);
	return config->flags & BUYS ? WE_PAY : SENDER_PAID;
}

#endif
