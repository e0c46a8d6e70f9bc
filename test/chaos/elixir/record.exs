defmodule Chaos.Record do
  @moduledoc false
  # Records of 64 bytes, as in `peer/src/record.rs`.

  @kinds ~w(intent published read claim_begin claimed give_begin given attach_begin attached
            detach_begin detached seal_begin sealed error bad waited)a
         |> Enum.with_index(1)
         |> Map.new()
  @steps ~w(create claim write read wait attach give detach seal look)a
         |> Enum.with_index(1)
         |> Map.new()
  @codes ~w(already_exists not_found invalid_name invalid_size invalid_option invalid_handle
            version_conflict torn empty permission_denied resource_exhausted deadline_violation io
            segment_busy out_of_bounds corrupted truncated sealed not_sealed schema_mismatch stale
            timeout closed unsupported)a
         |> Enum.with_index()
         |> Map.new()

  def now, do: :os.perf_counter(:nanosecond)

  def put(%{out: out, uid: uid}, kind, fields) do
    get = &Map.get(fields, &1, 0)
    t1 = Map.get_lazy(fields, :t1, &now/0)

    record =
      <<@kinds[kind]::16-little, get.(:code)::16-little, uid::32-little, get.(:seg)::32-little,
        get.(:len)::32-little, get.(:t0)::64-little, t1::64-little, get.(:tag)::64-little,
        get.(:version)::64-little, get.(:aux)::64-little, get.(:crc)::32-little, 0::32>>

    # Nobody listens any more: the orchestrator has ended.
    with {:error, _} <- :file.write(out, record), do: System.halt(0)
    :ok
  end

  def error(peer, step, error, fields) do
    # SIGTERM: the VM stops the application under us, and then us.
    with {:stopping, _} <- :init.get_status(), do: Process.sleep(:infinity)
    fields = Map.merge(fields, %{code: Map.get(@codes, error.code, 0xFFFF), aux: @steps[step]})
    put(peer, :error, Map.delete(fields, :t1))
  end
end
