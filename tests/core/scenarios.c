/* One interleaving each, made on purpose: a step of the core runs another participant's part.
 *
 *   scenarios NAME
 *
 * Sender and writers live in one process, each with its own mapping. Inside an append, MP_STEP calls
 * `meanwhile` once when it comes to `at_step`: whatever runs there happens while that writer is
 * stopped at that step. Exit status 1, with the line, where something is not as it must be.
 */
#include "scenario.h"

/* --- compression */

static void compression_begun_after_the_batch_was_released(void) {
    struct mp_place place;
    open_pool(4, 1000);
    CHECK(put(0, 0, 2000, &place) == MP_DONE && place.sealed_count == 1 && !place.sealed[0].ours);
    uint32_t slot;
    CHECK(take(0, &slot) == 1);
    CHECK(mp_release(&sender, slot)); /* expired, say, before anybody compressed it */
    CHECK(!mp_compress_begin(&writer[0], place.sealed[0]));
    check_all_free(4);
}

static void who_fills_a_batch_compresses_it_before_anybody_is_told(void) {
    struct mp_place place;
    open_pool(4, 1000);
    sender.region.ctl->compress = 1;
    CHECK(put(0, 0, 10, &place) == MP_DONE && place.sealed_count == 0);
    CHECK(mp_take_dirty(&sender, 0) == 1); /* as it was opened */
    CHECK(mp_sleep_begin(&sender, (uint64_t)mp_now_ns() / 1000 + 1000000));
    const uint64_t sleep = atomic_load(&sender.region.pool->wake);
    CHECK(put(0, 0, 900, &place) == MP_DONE && place.sealed_count == 1 && place.sealed[0].ours);
    CHECK(was_woken() && mp_take_dirty(&sender, 0) == 1);
    CHECK(sleep && !atomic_load(&sender.region.pool->wake));
    uint32_t slot, owner, first, bytes;
    CHECK(take(0, &slot) == 2);
    CHECK(mp_compressed(&sender, slot, &owner, &first, &bytes) == MP_C_BUSY && owner == 1);
    /* The same of one that had no room, and so was sealed for the next. */
    CHECK(put(1, 1, 300, &place) == MP_DONE && place.sealed_count == 0);
    CHECK(put(0, 1, 800, &place) == MP_DONE && place.sealed_count == 2);
    CHECK(place.sealed[0].ours && place.sealed[1].ours && place.sealed[1].slot == place.slot);
    CHECK(place.sealed[0].slot != place.slot);
    mp_compress_abandon(&writer[0], place.sealed[0]);
    CHECK(mp_compressed(&sender, place.sealed[0].slot, &owner, &first, &bytes) == MP_C_NONE);
}

static void a_batch_is_kept_while_its_worker_compresses_it(void) {
    struct mp_place place;
    open_pool(4, 1000);
    sender.region.ctl->compress = 1;
    CHECK(put(0, 0, 2000, &place) == MP_DONE && place.sealed[0].ours);
    uint32_t slot;
    CHECK(take(0, &slot) == 1);
    CHECK(mp_take_compression(&sender, slot));
    CHECK(!mp_release(&sender, slot));
    CHECK(mp_retry_quarantine(&sender) == 1 && mp_free_slots(&sender) == 3);
    static const uint8_t output[20000];
    CHECK(!mp_compress_end(&writer[0], place.sealed[0], output, sizeof output));
    check_all_free(4);
}

static void a_batch_of_a_dead_compressor_is_given_back(void) {
    struct mp_place place;
    open_pool(4, 1000);
    sender.region.ctl->compress = 1;
    CHECK(put(0, 0, 2000, &place) == MP_DONE && place.sealed[0].ours);
    uint32_t slot;
    CHECK(take(0, &slot) == 1);
    CHECK(!mp_release(&sender, slot));
    CHECK(!mp_owner_reusable(&sender, 1));
    sender.alive[1] = 0;
    mp_reap(&sender, 1);
    check_all_free(4);
    CHECK(mp_owner_reusable(&sender, 1));
}

static void output_of_a_worker_is_given_back_with_its_batch(void) {
    struct mp_place place;
    open_pool(6, 1000);
    sender.region.ctl->compress = 1;
    CHECK(put(0, 0, 2000, &place) == MP_DONE && place.sealed[0].ours);
    static const uint8_t output[40000];
    CHECK(mp_compress_end(&writer[0], place.sealed[0], output, sizeof output));
    CHECK(mp_free_slots(&sender) == 2);
    sender.alive[1] = 0;
    uint32_t slot;
    CHECK(take(0, &slot) == 1);
    CHECK(mp_reap(&sender, 1) == 0); /* the batch counts its output */
    CHECK(mp_release(&sender, slot));
    check_all_free(6);
}

static void compression_of_a_batch_whose_generation_came_round(void) {
    struct mp_place old, open;
    open_pool(1, 1000);
    CHECK(put(0, 0, 2000, &old) == MP_DONE && old.sealed_count == 1);
    uint32_t slot;
    CHECK(take(0, &slot) == 1 && mp_release(&sender, slot));
    for (int i = 1; i < GENERATIONS; i++) cycle(1);
    CHECK(put(1, 1, 10, &open) == MP_DONE && open.slot == old.sealed[0].slot);
    CHECK(mp_gen(atomic_load(&sender.region.slot[0].word)) == old.sealed[0].gen);
    CHECK(!mp_compress_begin(&writer[0], old.sealed[0])); /* it is open, and takes records */
    CHECK(put(1, 1, 10, &open) == MP_DONE && open.index == 1);
    CHECK(take(1, &slot) == 2 && mp_release(&sender, slot));
    check_all_free(1);
}

static struct mp_sealed rightful;

static void walk_and_release(void) {
    uint32_t slot;
    CHECK(take(1, &slot) == 1 && !mp_release(&sender, slot)); /* a living worker has BUSY */
}

static void begin_too_late(void) { CHECK(!mp_compress_begin(&writer[1], rightful)); }

static void compression_begun_while_its_batch_is_being_released(void) {
    struct mp_place old, full;
    open_pool(1, 1000);
    CHECK(put(0, 0, 2000, &old) == MP_DONE && old.sealed_count == 1);
    uint32_t slot;
    CHECK(take(0, &slot) == 1 && mp_release(&sender, slot));
    for (int i = 1; i < GENERATIONS; i++) cycle(1);
    CHECK(put(1, 1, 2000, &full) == MP_DONE && full.sealed_count == 1);
    rightful = full.sealed[0];
    CHECK(rightful.slot == old.sealed[0].slot && rightful.gen == old.sealed[0].gen);
    stop_at(28, walk_and_release); /* it has BUSY, of a batch that is not its own */
    CHECK(!mp_compress_begin(&writer[0], old.sealed[0]) && at_step == 0);
    stop_at(41, begin_too_late); /* the word shows NONE again */
    CHECK(mp_retry_quarantine(&sender) == 0 && at_step == 0);
    check_all_free(1);
}

/* --- append */

static void recycle_to_the_same_word(void) {
    CHECK(take(0, &cycle_slot) == 1 && cycle_slot == 0 && mp_release(&sender, 0));
    for (int i = 1; i < GENERATIONS; i++) cycle(1);
    struct mp_place place;
    CHECK(put(1, 1, 10, &place) == MP_DONE && place.slot == 0);
}

static void a_writer_stopped_until_its_word_came_round_writes_nothing_there(void) {
    struct mp_place place;
    open_pool(2, 1000);
    CHECK(put(1, 0, 10, &place) == MP_DONE && place.slot == 0);
    stop_at(8, recycle_to_the_same_word);
    CHECK(put(0, 0, 10, &place) == MP_DONE);
    CHECK(at_step == 0 && writer[0].stale == 1);
    CHECK(place.slot == 1 && place.index == 0);
    uint32_t slot;
    CHECK(take(1, &slot) == 1 && slot == 0 && mp_release(&sender, slot));
    CHECK(take(0, &slot) == 1 && slot == 1 && mp_release(&sender, slot));
    check_all_free(2);
}

static uint32_t lent;

static void seal_walk_and_release(void) {
    CHECK(take(0, &lent) == 1);
    CHECK(!mp_release(&sender, lent)); /* its writer lives */
    struct mp_place place;
    CHECK(put(1, 0, 10, &place) == MP_DONE && place.slot != lent);
}

static void a_commit_that_lost_goes_to_the_next_batch(void) {
    struct mp_place place;
    open_pool(8, 100000);
    for (int step = 9; step <= 13; step += 2) { /* owned; about to write; about to commit */
        CHECK(put(1, 0, 10, &place) == MP_DONE);
        const uint32_t first = place.slot;
        const uint64_t lost = writer[0].lost_commits;
        stop_at(step, seal_walk_and_release);
        CHECK(put(0, 0, 30000, &place) == MP_DONE);
        CHECK(at_step == 0 && lent == first && writer[0].lost_commits == lost + 1);
        CHECK(place.slot != first && place.index == 1);
        CHECK(mp_retry_quarantine(&sender) == 0);
        uint32_t slot;
        CHECK(take(0, &slot) == 2 && mp_release(&sender, slot));
        check_all_free(8);
    }
}

static void a_writer_that_never_acknowledges_keeps_the_slot_until_it_is_dead(void) {
    struct mp_place place;
    open_pool(4, 100000);
    CHECK(put(1, 0, 10, &place) == MP_DONE);
    mp_a64 *word = &sender.region.slot[place.slot].word;
    atomic_fetch_or(word, mp_own(1)); /* T3, and then it is stopped */
    CHECK(take(0, &lent) == 1);
    CHECK(!mp_release(&sender, lent));
    for (int i = 0; i < 3; i++) CHECK(mp_retry_quarantine(&sender) == 1);
    CHECK(!mp_owner_reusable(&sender, 1));
    sender.alive[1] = 0;
    mp_reap(&sender, 1);
    check_all_free(4);
    CHECK(mp_owner_reusable(&sender, 1));
}

static void other_opens_the_batch(void) {
    struct mp_place place;
    CHECK(put(1, 0, 10, &place) == MP_DONE && place.index == 0);
}

static void a_link_that_lost_appends_to_the_batch_that_won(void) {
    struct mp_place place;
    open_pool(8, 100000);
    stop_at(15, other_opens_the_batch);
    CHECK(put(0, 0, 20000, &place) == MP_DONE);
    CHECK(at_step == 0 && place.index == 1 && writer[0].stash == MP_NONE);
    CHECK(mp_free_slots(&sender) == 6);
    uint32_t slot;
    CHECK(take(0, &slot) == 2 && mp_release(&sender, slot));
    check_all_free(8);
}

static void an_empty_batch_of_a_living_owner_is_not_sealed(void) {
    struct mp_place place;
    open_pool(4, 100000);
    CHECK(put(0, 0, 10, &place) == MP_DONE);
    /* As between link and commit. */
    mp_a64 *word = &sender.region.slot[place.slot].word;
    const uint64_t committed = atomic_load(word);
    atomic_store(word, (committed & (MP_LIVE | MP_GEN_MASK)) | mp_own(1));
    uint32_t found[4];
    uint64_t seq;
    CHECK(mp_new_batches(&sender, 0, found, &seq) == 1 && !mp_seal(&sender, found[0]));
    sender.alive[1] = 0;
    CHECK(mp_reap(&sender, 1) == 0); /* linked: it is the sender's to release */
    CHECK(mp_seal(&sender, found[0]) && mp_release(&sender, found[0]));
    check_all_free(4);
}

/* --- announcements */

static void is_marked_and_woke_nobody(void) {
    CHECK(!was_woken());
    CHECK(atomic_load(&sender.region.dirty[0]) == 1);
}

static void the_sender_is_woken_behind_the_first_commit_of_a_batch(void) {
    struct mp_place place;
    open_pool(4, 100000);
    for (int step = 17; step <= 18; step++) { /* before the commit, and behind it */
        fall_asleep(1000000);
        stop_at(step, is_marked_and_woke_nobody);
        CHECK(put(0, 0, 10, &place) == MP_DONE && place.index == 0 && at_step == 0);
        CHECK(was_woken() && mp_take_dirty(&sender, 0) == 1);
        uint32_t slot;
        CHECK(take(0, &slot) == 1 && mp_release(&sender, slot));
    }
    fall_asleep(500); /* the linger is 1 ms: it wakes by itself before */
    CHECK(put(0, 0, 10, &place) == MP_DONE && place.index == 0 && !was_woken());
}

static void a_run_is_in_its_new_batch_before_the_sender_is_woken(void) {
    static uint8_t value[60000];
    struct mp_record record[3];
    const struct mp_record *list[3];
    struct mp_value values[3];
    for (int i = 0; i < 3; i++) {
        record[i] = (struct mp_record){.value = value, .value_bytes = i == 2 ? 60000 : 100,
                                       .key_bytes = -1, .timestamp_ms = 1000 + i};
        list[i] = &record[i];
        values[i] = (struct mp_value){.data = value, .bytes = record[i].value_bytes};
    }
    struct mp_place place;
    open_pool(8, 50000);
    for (int plain = 0; plain < 2; plain++)
        for (uint32_t count = 2; count <= 3; count++) { /* the third has no room beside them */
            fall_asleep(1000000);
            stop_at(13, is_marked_and_woke_nobody);
            CHECK((plain ? mp_append_values(&writer[0], 0, values, count, 1000, 0, &place)
                         : mp_append_run(&writer[0], 0, list, count, 0, &place)) == MP_DONE);
            CHECK(at_step == 0 && place.index == 0 && place.count == 2 && place.bytes > 200);
            CHECK(was_woken() && mp_take_dirty(&sender, 0) == 1);
            uint32_t slot;
            CHECK(take(0, &slot) == 2 && mp_release(&sender, slot));
        }
    list[1] = list[2];
    values[1] = values[2];
    for (int plain = 0; plain < 2; plain++) { /* the second has no room beside the first */
        fall_asleep(1000000);
        CHECK((plain ? mp_append_values(&writer[0], 0, values, 2, 1000, 0, &place)
                     : mp_append_run(&writer[0], 0, list, 2, 0, &place)) == MP_DONE);
        CHECK(place.count == 1 && place.sealed_count == 1 && mp_filled_batch(&place));
        CHECK(was_woken() && mp_take_dirty(&sender, 0) == 1);
        uint32_t slot;
        CHECK(take(0, &slot) == 1 && mp_release(&sender, slot));
    }
    check_all_free(8);
}

static void other_adds_and_wakes_the_sender(void) {
    struct mp_place place;
    CHECK(!was_woken());
    CHECK(put(1, 0, 10, &place) == MP_DONE && place.index == 1);
    CHECK(was_woken());
    CHECK(put(1, 0, 10, &place) == MP_DONE && place.index == 2);
    CHECK(!was_woken()); /* once is enough */
}

static void who_adds_to_the_batch_of_a_stopped_opener_wakes_the_sender(void) {
    struct mp_place place;
    open_pool(4, 100000);
    fall_asleep(1000000);
    stop_at(18, other_adds_and_wakes_the_sender);
    CHECK(put(0, 0, 10, &place) == MP_DONE && at_step == 0);
    CHECK(take(0, NULL) == 3);
}

static void other_adds_and_wakes_nobody(void) {
    struct mp_place place;
    CHECK(put(1, 0, 10, &place) == MP_DONE && place.index == 1);
    CHECK(!was_woken());
}

static void look_before_its_first_record(void) { CHECK(mp_take_dirty(&sender, 0) == 2); }

static void who_adds_to_a_batch_that_will_be_looked_at_wakes_nobody(void) {
    struct mp_place place;
    open_pool(4, 100000);
    fall_asleep(500); /* before the batch is due */
    stop_at(18, other_adds_and_wakes_nobody);
    CHECK(put(0, 0, 10, &place) == MP_DONE && at_step == 0);
    CHECK(take(0, NULL) == 2 && mp_take_dirty(&sender, 0) == 1);
    mp_sleep_end(&sender);
    stop_at(17, look_before_its_first_record);
    CHECK(put(0, 1, 10, &place) == MP_DONE && at_step == 0);
    fall_asleep(1000000); /* the mark was taken */
    CHECK(put(1, 1, 10, &place) == MP_DONE && place.index == 1 && !was_woken());
}

static const struct scenario scenarios[] = {
    SCENARIO(compression_begun_after_the_batch_was_released),
    SCENARIO(who_fills_a_batch_compresses_it_before_anybody_is_told),
    SCENARIO(a_batch_is_kept_while_its_worker_compresses_it),
    SCENARIO(a_batch_of_a_dead_compressor_is_given_back),
    SCENARIO(output_of_a_worker_is_given_back_with_its_batch),
    SCENARIO(compression_of_a_batch_whose_generation_came_round),
    SCENARIO(compression_begun_while_its_batch_is_being_released),
    SCENARIO(a_writer_stopped_until_its_word_came_round_writes_nothing_there),
    SCENARIO(a_commit_that_lost_goes_to_the_next_batch),
    SCENARIO(a_writer_that_never_acknowledges_keeps_the_slot_until_it_is_dead),
    SCENARIO(a_link_that_lost_appends_to_the_batch_that_won),
    SCENARIO(an_empty_batch_of_a_living_owner_is_not_sealed),
    SCENARIO(the_sender_is_woken_behind_the_first_commit_of_a_batch),
    SCENARIO(a_run_is_in_its_new_batch_before_the_sender_is_woken),
    SCENARIO(who_adds_to_the_batch_of_a_stopped_opener_wakes_the_sender),
    SCENARIO(who_adds_to_a_batch_that_will_be_looked_at_wakes_nobody),
};

int main(int argc, char **argv) {
    return run_scenario(scenarios, sizeof scenarios / sizeof *scenarios, argc, argv);
}
