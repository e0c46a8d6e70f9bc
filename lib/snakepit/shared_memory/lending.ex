defmodule Snakepit.SharedMemory.Lending do
  @moduledoc false
  # A region of this VM whose writer's place another OS process takes, to fill it in place. It stays ours:
  # it counts, goes with its owner, and is not removed however the other process ends.

  alias Snakepit.SharedMemory.{Dtype, Error, History, Lifecycle, Native, Options, Table, Target}
  alias Snakepit.SharedMemory.Writing

  @lend [
          dtype: {{:nilable, :dtype}, nil},
          shape: {{:nilable, :shape}, nil}
        ] ++ Target.schema()

  @spec lend(term(), term()) :: {:ok, map()} | {:error, Error.t()}
  def lend(region, opts) do
    with {:ok, options} <- Options.validate(opts, @lend, :lend_region),
         {:ok, target} <- Target.resolve(region, options, :lend_region),
         {:ok, writer, record} <- ours(region, target, :lend_region),
         {:ok, described} <- described(options, record),
         {:ok, token} <- Error.wrap(Native.lend(writer), :lend_region, target.id) do
      # Its time begins anew: the other process is still to come.
      Table.used(target.key)
      History.add(target.key, :lend, self())

      loan = %{
        "__snakepit_shm_loan__" => 1,
        "name" => target.id,
        "namespace" => target.namespace,
        "size" => record.size,
        "token" => token
      }

      {:ok, Map.merge(loan, described)}
    end
  end

  @spec take_back(term(), term()) :: {:ok, String.t()} | {:error, Error.t()}
  def take_back(region, opts) do
    with {:ok, options} <- Options.validate(opts, Target.schema(), :take_back_region),
         {:ok, target} <- Target.resolve(region, options, :take_back_region),
         {:ok, writer, _record} <- ours(region, target, :take_back_region),
         {:ok, :ok} <- Error.wrap(Native.take_back(writer), :take_back_region, target.id) do
      History.add(target.key, :take_back, self())
      {:ok, target.id}
    end
  end

  # A handle names a value that is sealed: there is nothing to fill any more.
  defp ours(%{"__snakepit_shm__" => _}, target, :lend_region) do
    {:error, Writing.sealed_by_handle(target.id, :lend_region)}
  end

  # Of a later region of that name it says nothing.
  defp ours(%{"__snakepit_shm__" => _} = handle, target, operation) do
    with {:ok, writer, record} <- ours(target.id, target, operation),
         answer = Error.wrap(Native.writer_handle(writer), operation, target.id),
         :ok <- Lifecycle.check_handle(answer, handle, operation) do
      {:ok, writer, record}
    end
  end

  defp ours(_region, target, operation) do
    with {:ok, writer, _reader} <- Table.region(target.key),
         {:ok, record} <- Table.record(target.key) do
      {:ok, writer, record}
    else
      :not_started -> {:error, Error.not_started(operation)}
      :error -> {:error, Error.not_found(target.id, operation)}
    end
  end

  defp described(%{dtype: nil, shape: nil}, _record), do: {:ok, %{}}

  defp described(%{dtype: nil}, _record) do
    {:error,
     Error.new(:invalid_option, "option :shape needs :dtype",
       operation: :lend_region,
       remedy: "say which elements the array is to have, such as dtype: :f32"
     )}
  end

  defp described(%{dtype: dtype, shape: shape}, %{size: size}) do
    {:ok, dtype} = Dtype.to_string(dtype)

    with {:ok, item} <- Dtype.item_size(dtype) do
      shape = shape || [div(size, item)]
      bytes = Enum.reduce(shape, item, &(&1 * &2))

      if bytes in 1..size//1,
        do: {:ok, %{"dtype" => dtype, "shape" => shape}},
        else: {:error, does_not_fit(bytes, size)}
    else
      :error ->
        {:error, Options.invalid("option :dtype", "an element type", dtype, :lend_region)}
    end
  end

  defp does_not_fit(bytes, size) do
    Error.new(:out_of_bounds, "an array of #{bytes} bytes does not fit into #{size}",
      operation: :lend_region,
      remedy: "allocate a region of at least as many bytes as the array has, which is at least 1"
    )
  end
end
