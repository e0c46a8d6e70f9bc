defmodule Snakepit.SharedMemory.Memory do
  @moduledoc false
  # What a region's memory is to be like: the options, and what the core is told of them.

  alias Snakepit.SharedMemory.{Config, Options}

  @node {:integer, 0, 0xFFFF_FFFF}
  @numa {:either, [@node, :nodes, {:in, [:interleave]}, {:tuple, [{:in, [:interleave]}, :nodes]}]}

  # Of whoever creates or attaches.
  @attach [prefault: {{:nilable, :boolean}, nil}, lock_memory: {{:nilable, :boolean}, nil}]

  @create [
            huge_pages: {{:in, [nil, false, true, :prefer, :require]}, nil},
            numa: {{:nilable, @numa}, nil}
          ] ++ @attach

  # From here on huge pages pay: fresh small ones cost several times what the copy does.
  @huge_from 4 * 1024 * 1024
  # From here on it pays to map all pages at once rather than by a fault for each.
  @prefault_from 1024 * 1024

  @spec create_schema() :: Options.schema()
  def create_schema, do: @create

  @spec attach_schema() :: Options.schema()
  def attach_schema, do: @attach

  @doc "What the core is told when a region is created."
  @spec to_create(map(), Config.t()) :: map()
  def to_create(options, config) do
    by_default = if config.platform_options.linux.use_hugepages, do: :prefer

    %{
      huge_pages: huge_pages(options.huge_pages, by_default),
      prefault: options.prefault,
      lock_memory: options.lock_memory,
      numa: numa(options.numa)
    }
  end

  @doc "What the core is told when a region is attached; empty when nothing is asked for."
  @spec to_attach(map()) :: map()
  def to_attach(options) do
    for {key, _type} <- @attach, options[key], into: %{}, do: {key, true}
  end

  @doc "The options of a region that is filled at once, as far as the caller leaves them open."
  @spec filled_at_once(map(), non_neg_integer()) :: map()
  def filled_at_once(%{reserve: :eager} = options, size) do
    options
    |> Map.update!(:prefault, &if(&1 == nil, do: size >= @prefault_from, else: &1))
    |> Map.update!(:huge_pages, &if(&1 == nil and size >= @huge_from, do: :prefer, else: &1))
  end

  def filled_at_once(options, _size), do: options

  defp huge_pages(nil, by_default), do: by_default
  defp huge_pages(false, _by_default), do: nil
  defp huge_pages(true, _by_default), do: :require
  defp huge_pages(asked, _by_default), do: asked

  # Interleaving without nodes is over all that there are.
  defp numa(nil), do: nil
  defp numa(:interleave), do: {:interleave, []}
  defp numa({:interleave, nodes}), do: {:interleave, nodes}
  defp numa(node) when is_integer(node), do: {:bind, [node]}
  defp numa(nodes), do: {:bind, nodes}
end
